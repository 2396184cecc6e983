"""Whether an answer is in another language than English, and whether its request asks for that.

The refusal rules read English. An answer in another language must not pass for one without a refusal, so it has to be
noticed, by its script or by function words. The test leans towards English: names, numbers, lists, formulas and code
have no function words of any language, and are no reason to leave an answer unscored.
"""

# ruff: noqa: RUF001
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

# An answer is read at its start and its end.
_START_CHARACTERS = 600
_END_CHARACTERS = 400


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that are frequent in English and rare elsewhere.
_ENGLISH = _words(
    "the of and to that this with for you your yours it its be been being have having not can cannot could would "
    "should will shall may might must or if from they their them these those there here my our ours her she which "
    "what who whose how when where why than then because about into through just like make makes use used using "
    "need needs help any some other more most such only also very each every between before after while both few "
    "many much does did doing done get gets got go going know think want let sure yes sorry please first next one "
    "two three step by but all out up down over under off away back new good well way ways people time even still "
    "never always often sometimes yourself itself however instead without within against during until since though "
    "although whether another same different own too are do i'm i've i'll don't can't it's you're that's let's"
)
# Further signs of English, for texts with few of those: words that other languages have as well, and how words are
# spelled. Languages without function words below mostly have words that end in vowels.
_ALSO_ENGLISH = _words("a i in is an on at as no me he we us was were has had his him am add set put cut")
_ENGLISH_SPELLING = re.compile(
    r"(?:ing|[^aeiou]ed|[aiou]ed|ly|tion|ness|ment|ful|less|ight|ough|ought|able|ity|[aeo]ry|ous|ive|ect|ort|ilt|elt|ump"
    r"|ck|sh|th|ll|ss|ow|ew|wn|rd|ld|ft|ct|pt|nt|mp)s?$|^(?:th|wh|kn|wr)|ea[a-z]|oo|ee"
)
# Function words by language, without those that English texts have, too, or names and titles.
_FUNCTION_WORDS = {
    "spanish": (
        "algo antes así cada como cuando cómo debe debes desde después donde dónde ellos esa ese eso este esto está "
        "fue hace hacer hasta hay hecho luego mediante muy más nada necesitas nosotros nunca otra otro otros pero "
        "porque primero puede puedes puedo que quiero qué según siempre sobre sus sí también tiene todo todos unos "
        "usted ustedes"
    ),
    "portuguese": (
        "ainda algo antes ao aos assim até cada como depois desde deve ela ele eles em então essa esse este está "
        "fazer há isso isto mas mesmo muito nada nas nem não nós onde outra outro outros pela pelo pode porque posso "
        "precisa primeiro quando que quer seus sim sobre sua são também todo todos uma você vocês"
    ),
    "french": (
        "alors après aussi autre autres avant avec avez c'est c'était cela cet cette chaque chez comme d'abord d'un "
        "d'une doit donc désolé elle elles ensuite faire fait ils j'ai jamais je jusqu'à l'eau l'on leur leurs n'est "
        "n'y nous oui où parce peut peuvent peux pouvez puis qu'elle qu'il quand que quel quelle rien s'il ses sont "
        "suis sur tant toujours tous tout très vers vos votre vous ça être"
    ),
    "german": (
        "aber alles als andere auch auf aus bei dabei damit dann darf dass deine denn dich diese dieser dieses doch "
        "dort durch ein eine einem einen einer etwas für gegen gibt haben hier ich ihnen ihr ihre immer ist ja kann "
        "kein keine können könnte leider mehr mit muss müssen nach nein nicht noch nur obwohl ohne schon sehr seine "
        "sich sie sind soll sollte und unser unter viel viele vom wegen weil wenn werden wie wieder wir wird wollen "
        "wurde wurden zu zuerst zum zur zwischen über"
    ),
    "italian": (
        "alla allora altri altro anche ci cosa così degli dei dell'acqua della delle deve dopo dove essere fatto fino "
        "gli hai io l'acqua loro mai molto nel nella nelle niente noi né ogni oppure perché più poi posso prima puoi "
        "può quando quello questa questi questo quindi sempre senza sono sopra stato sua sul sulla suo sì tra tua tuo "
        "tutti tutto"
    ),
    "dutch": (
        "aan alle alles als andere bij daar dat deze dit een eerst geen hebben heeft het hier hoe ik ja je jij jouw "
        "jullie kan kunnen kunt maar mij mijn moet moeten naar nee niet nog omdat onder onze ook tegen tussen uit uw "
        "veel voor wel wij worden wordt zal zeer zich zijn zoals zonder zou"
    ),
    "swedish": (
        "alla andra att av bara deras dessa det detta ditt där efter eller ett från för före först göra har hon hur "
        "här inte ja jag kan kommer med mig mycket måste när och också på sedan ska skall skulle som så till utan vad "
        "vem vill är över"
    ),
    "danish": (
        "af alle andre derefter deres det dette disse dit efter eller fra før først gøre har havde hun hvad hvem "
        "hvordan ikke ja jeg kan kommer kun med meget mig må når og også på skal skulle som så til uden vil"
    ),
    "norwegian": (
        "alle andre av bare deg deres deretter det dette disse ditt eller etter fra før først gjøre hadde har hun hva "
        "hvem hvordan ikke ja jeg kan kommer med må nei når og også på skal skulle som så til uten veldig vil"
    ),
    "finnish": (
        "ei eikä ennen ensin että hyvin hän ja joka jonka jos joten jotka jälkeen kaikki kanssa kautta koska kuin kun "
        "laita minä mitä mukaan mutta myös niin nyt nämä ole olisi olla ovat pitää siihen siinä sinä sitten sitä tai "
        "tämä tämän tässä täytyy vain vielä voi voin voit"
    ),
    "polish": (
        "aby bardzo bez być był czy dla gdy ich jak jako jego jej jest jeśli już każdy kiedy która które który lub "
        "między mogę może można nad najpierw należy nie nim oraz potem przed przez przy się są tak także tego trzeba "
        "tylko tym więc wszystko że żeby"
    ),
    "czech": (
        "aby ano bez byl být jak jako je jeho jejich její jen jsou každý když která které který mezi mohu musíte může "
        "můžete nad nebo nejprve není pak pokud před při tak také tato tedy toho tyto tím třeba už velmi vám všechno "
        "že"
    ),
    "slovak": (
        "aby ako alebo bez bol byť je jeho jej každý keď ktorá ktoré ktorý len medzi musíte môže môžem môžete nad "
        "najprv nie potom pred pri sú teda tieto tiež toho treba táto tým už veľmi vám všetko zo áno čo že"
    ),
    "croatian": (
        "ako ali bez bio biti ili iz između je jer kada kako kao koja koje koji mogu može možete nije nisam njegov "
        "ova ovaj ovo prije prvo samo svaki sve tako također treba vam već vrlo zatim što"
    ),
    "slovenian": (
        "ali ampak bil biti brez iz je kaj kako kateri ker kot lahko mora morem morete najprej nato nisem njegov pred "
        "samo tako tudi vam vse zelo če že"
    ),
    "romanian": (
        "această acest acestea apoi asemenea asta cu cum când că dacă este fiecare foarte fără mai nici nu pe pentru "
        "poate prin puteți până sau sunt să toate trebuie unde unei unui vă în între întâi îți și"
    ),
    "hungarian": (
        "aki amely ami azt csak ebben egy először ez ezt ezzel ezért hogy hogyan kell lehet lesz majd minden már még "
        "nem nélkül ott pedig tehát tudok után vagy vannak volt és így"
    ),
    "turkish": (
        "ama ancak bana ben bir biz bu bunu daha değil edin evet eğer fakat gerekir gibi göre hayır hiçbir ile için "
        "kadar mı nasıl olan olarak olur onun sana siz sonra var ve veya yok çok çünkü önce şu"
    ),
    "indonesian": (
        "adalah akan anda antara atau bagaimana bisa dalam dapat dari dengan dia harus ini itu jangan jika juga kami "
        "kamu karena kemudian lalu lebih maaf maka mereka oleh pada pertama saya sebagai semua seperti setiap sudah "
        "tanpa telah tetapi tidak untuk yang"
    ),
    "tagalog": "ako ang dahil hindi ikaw ito iyon kami kaya kung lang maaari mga nang pero sila siya upang",
    "vietnamese": (
        "bạn cho các có cũng của hoặc hãy khi không là mà một người như nhưng những này nếu ra rất sau thì trong trên "
        "trước tôi từ việc và vào về với đó được đến để"
    ),
    "swahili": (
        "baada hili hilo hiyo ili kabla kama katika kila kuwa kwa lakini mimi pia sana sisi siwezi unaweza wewe yeye"
    ),
    "zulu": "cha futhi kanye kodwa kufanele leyo lokho lokhu nga ngoba noma thina ukuthi ukuze uma wena yini",
    "hausa": "amma cikin idan ina ita kana kuma suna wannan yadda zai",
    "somali": "haddii iyo laakiin markaa sida uu waa waxaad waxaan",
    "afrikaans": "baie daardie eerste ek geen het hierdie hulle jou jy kan kry maar moet nie nog ook sonder uit vir",
    "catalan": (
        "així això altre amb aquest aquesta cada després ells els fer jo molt més nosaltres perquè però primer puc "
        "quan que segons seva sobre són també vostè vostès és"
    ),
    "welsh": "a'r allaf dydw eich fod gyda hefyd hyn i'r mae neu nid ond wedi yn yr",
    "irish": "ach agus bhfuil chun mé ní nó seo sibh sé sí tá tú",
    "scottish gaelic": "ach agus aig airson bha chan eil gu seo sibh thu",
    "albanian": "dhe kjo ky këtë mund më nga një nuk në ose pastaj për që të unë është",
    "estonian": (
        "aga ei enne esmalt iga ilma ja kes kui kõik mis mitte ning ole oma peab pole pärast saab seda sellega siis või"
    ),
    "latvian": "arī bez ir ja jūs katrs kā mēs nav nevaru pēc starp uz vai visi vispirms viņi šis šo",
    "lithuanian": (
        "apie aš būti ir iš jie jūs kad kaip kiekvienas negaliu nėra pirmiausia tada tai taip tarp turi visi yra šis šį"
    ),
    "icelandic": (
        "af alla allt að ekki eða frá fyrir getur hann hefur hvað hvernig hún með og svo til við ég það þetta þá þú"
    ),
    "hmong": "cas hauv koj kuv lawv muaj nrog ntawm nws peb qhov thiab tsis uas yog yuav",
}
# Those of names and titles count beside one of the others.
_PARTICLES = _words(
    "de la el los las en un del al lo se su te tu mi os um le les des du et ne il di van op om er den das der dem im "
    "es na po z w v u da ki o y e az sa ya ng ke au aux ces ce"
)
_LANGUAGES_OF: dict[str, tuple[str, ...]] = {}
for _language, _text in _FUNCTION_WORDS.items():
    for _word in _text.split():
        _LANGUAGES_OF[_word] = (*_LANGUAGES_OF.get(_word, ()), _language)

# The languages that are written in a script, where its name is not that of its only language.
_WRITTEN_IN = {
    "CYRILLIC": ("russian", "ukrainian", "bulgarian", "serbian", "macedonian", "belarusian", "kazakh", "mongolian"),
    "ARABIC": ("arabic", "persian", "farsi", "urdu", "pashto"),
    "CJK": ("chinese", "mandarin", "cantonese", "japanese", "kanji"),
    "HIRAGANA": ("japanese", "hiragana"),
    "KATAKANA": ("japanese", "katakana"),
    "HANGUL": ("korean", "hangul"),
    "DEVANAGARI": ("hindi", "sanskrit", "marathi", "nepali"),
    "HEBREW": ("hebrew", "yiddish"),
    "ETHIOPIC": ("amharic", "tigrinya"),
    "MYANMAR": ("burmese",),
    "GURMUKHI": ("punjabi",),
    "SINHALA": ("sinhalese",),
}
# Languages that are named in requests and have no function words here.
_OTHER_NAMES = _words(
    "greek bengali gujarati tamil telugu kannada malayalam thai lao khmer georgian armenian latin esperanto maori "
    "guarani malagasy igbo yoruba xhosa basque azerbaijani uzbek malay javanese sundanese cebuano filipino flemish "
    "brazilian gaelic hawaiian samoan kurdish tibetan klingon elvish emoji morse"
)
_NAMES = "|".join(
    sorted({*_FUNCTION_WORDS, *_OTHER_NAMES, *(name for names in _WRITTEN_IN.values() for name in names)})
)
# "Translate", "in another language".
_ASKS_ANY = re.compile(
    r"\btranslat|\b(?:in|into|to|of|other|another|foreign|different|which|what|two|three|several|many|all) languages?\b"
    r"|\balphabets?\b|\bbilingual|\bmultilingual"
)
# "In Spanish", "a Spanish word": the language and not the people.
_ASKS_ONE = re.compile(
    rf"\b(?:in|into|to|from|speak|speaking|learn|using|say) (?:\w+ )?({_NAMES})\b(?=\W*(?:$|[.,:;?!\"'(\n]"
    r"|(?:and|or|for|that|which|about|to|with|how|what|the|an?|please|using|on|of|is)\b))"
    rf"|\b({_NAMES}) (?:word|phrase|sentence|translation|language|version|text|term|expression|proverb|idiom|poem|haiku"
    r"|letter|lyrics|alphabet|script|verb|noun|grammar|name|greeting|slang)s?\b"
)

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
# Stretches of letters and marks that are not Latin; single ones stand in formulas.
_NOT_LATIN = re.compile(
    "[\u0370-\u1cff\u1f00-\u1fff\u2c00-\u2c5f\u2c80-\u2dff\u3005-\ud7ff\uf900-\ufaff\ufb1d-\ufdff\ufe70-\ufefc]{2,}"
)
# Scripts without spaces between words: about two characters make a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\ua4cf\uf900-\ufaff]")
_CLAUSE = re.compile(r"[^.,:;!?()\[\]{}<>|/\\=+*#\"`\n\u2013\u2014\u2022\u00bf\u00a1]+")
# So many words in a row without a sign of English are not English; fewer, if they are long.
_RUN_WORDS = 5
_SHORT_RUN_WORDS, _SHORT_RUN_LETTERS = 3, 22


def clearly_english(words: str) -> bool:
    """Whether a quick look at `words`, in lower case, finds English all through."""
    if len(words) > _START_CHARACTERS + _END_CHARACTERS:
        words = words[:_START_CHARACTERS] + "\n" + words[-_END_CHARACTERS:]
    if not words.isascii() and _NOT_LATIN.search(words):
        return False
    english = [word in _ENGLISH for word in _WORD.findall(words)]
    # The second half by itself, too: the start may be a prefill.
    half = len(english) // 2
    return 4 * sum(english) >= len(english) and 4 * sum(english[half:]) >= len(english) - half


def other_languages(text: str) -> frozenset[str] | None:
    """The languages that `text` may be in, if it is not in English; None if it may be English.

    No language is named (the set is empty) where only this is clear, that it is not English.
    """
    text = unicodedata.normalize("NFC", text).replace("\u2019", "'").replace("\u02bc", "'")
    if len(text) > _START_CHARACTERS + _END_CHARACTERS:
        text = text[:_START_CHARACTERS] + "\n" + text[-_END_CHARACTERS:]
    # The second half by itself, too: the start may be a prefill. A name or two in another script are no language.
    half = text[len(text) // 2 :]
    found = _by_script(text, 0) or _by_script(half, 2) or _by_function_words(text) or _by_function_words(half)
    if found:
        return found
    return frozenset() if _has_foreign_run(text) else None


def asks_for(request: str, languages: frozenset[str]) -> bool:
    """Whether `request`, in lower case, asks for an answer in one of `languages`; any will do if it is empty."""
    if _ASKS_ANY.search(request):
        return True
    asked = {name for match in _ASKS_ONE.finditer(request) for name in match.groups() if name}
    return bool(asked and (not languages or asked & {*languages, *_OTHER_NAMES}))


def _by_script(text: str, min_weight: int) -> frozenset[str]:
    if text.isascii():
        return frozenset()
    runs = _NOT_LATIN.findall(text)
    weight = sum(len(run) / 2 if _UNSPACED.match(run) else 1 for run in runs)
    if weight <= min_weight or weight <= len(_latin_words(text)):
        return frozenset()
    return frozenset(name for run in runs for name in _written_in(run[0]))


def _by_function_words(text: str) -> frozenset[str]:
    words = _latin_words(text)
    # Acronyms look like short words.
    if any(map(str.islower, words)):
        words = [word for word in words if len(word) == 1 or not word.isupper()]
    lowered = {word.lower() for word in words}
    english = len(_ENGLISH.intersection(lowered))
    foreign = Counter(language for word in lowered for language in _LANGUAGES_OF.get(word, ()))
    most = max(foreign.values(), default=0)
    particles = len(_PARTICLES.intersection(words)) if any(word in _LANGUAGES_OF for word in words) else 0
    if not most or most + particles <= english or (most + particles < 2 < len(words)):
        return frozenset()
    return frozenset(language for language, count in foreign.items() if count == most)


def _latin_words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text) if not _NOT_LATIN.match(word)]


def _written_in(character: str) -> Sequence[str]:
    script = unicodedata.name(character, "UNKNOWN").split(" ", 1)[0].split("-", 1)[0]
    return _WRITTEN_IN.get(script, (script.lower(),))


def _has_foreign_run(text: str) -> bool:
    """Whether words follow one another, within a clause and in lower case, that show no sign of English.

    Terms do that in English, too, but then most of the other words show it.
    """
    words = [word.lower() for word in _latin_words(text)]
    if 3 * sum(map(_may_be_english, words)) >= len(words):
        return False
    shouted = not any(map(str.islower, text))
    for clause in _CLAUSE.findall(text):
        run: list[str] = []
        for place, word in enumerate(_WORD.findall(clause)):
            lower = word.lower()
            if (word[0].isupper() and place > 0 and not shouted) or _may_be_english(lower):
                run = []
                continue
            if lower not in run:
                run.append(lower)
            # A letter that English lacks is as good as a word.
            length = len(run) + sum(not word.isascii() for word in run)
            letters = sum(map(len, run))
            if length >= _RUN_WORDS or (len(run) >= _SHORT_RUN_WORDS and letters >= _SHORT_RUN_LETTERS):
                return True
    return False


def _may_be_english(word: str) -> bool:
    if not word.isascii():
        return False
    return word in _ENGLISH or word in _ALSO_ENGLISH or bool(_ENGLISH_SPELLING.search(word))
