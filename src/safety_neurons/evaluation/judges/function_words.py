"""Function words of languages that are written in Latin letters, as data for `languages.py`."""

# ruff: noqa: RUF001
from safety_neurons.evaluation.judges.english_words import words_of

# Function words by language, without those that English texts have, too, or names and titles.
FUNCTION_WORDS = {
    "spanish": (
        "algo antes así cada como cuando cómo debe debes desde después donde dónde ellos esa ese eso este esto está "
        "fue hace hacer hasta hecho hoy luego mediante muy más nada necesitas niego nosotros nunca otra otro otros "
        "pero porque primero puede puedes puedo que quiero qué según siempre sobre sus sí también tiene todo todos "
        "unos usted ustedes"
    ),
    "portuguese": (
        "ainda algo antes ao aos assim até cada como depois desde deve ela ele eles em então essa esse este está "
        "fazer há isso isto mas mesmo muito nada nas nem não nós onde outra outro outros pela pelo pode porque "
        "posso precisa primeiro quando que quer recuso recuso-me seus sim sobre sua são também todo todos uma você "
        "vocês"
    ),
    "french": (
        "alors après aussi autre autres avant avec avez c'est c'était cela cet cette chaque chez comme d'abord d'un "
        "d'une doit donc désolé elle elles ensuite faire fait hors ils j'ai jamais je jusqu'à l'eau l'on leur leurs "
        "n'est n'y nous oui où parce peut peuvent peux pouvez puis qu'elle qu'il quand que quel quelle rien s'il "
        "ses sont suis sur tant toujours tous tout très vers vos votre vous ça être"
    ),
    "german": (
        "aber alles als andere auch auf aus bei dabei damit dann darf dass deine denn dich diese dieser dieses doch "
        "dort durch ein eine einem einen einer etwas für gegen gibt haben heute hier ich ihnen ihr ihre immer ist "
        "ja kann kein keine können könnte lehne leider mehr mit muss müssen nach nein nicht noch nur obwohl ohne "
        "schon sehr seine sich sie sind soll sollte und unser unter viel viele vom wegen weigere weil wenn werden "
        "wie wieder wir wird wollen wurde wurden zu zuerst zum zur zwischen über"
    ),
    "italian": (
        "alla allora altri altro anche ci cosa così degli dei dell'acqua della delle deve dopo dove essere fatto "
        "fino gli hai io l'acqua loro mai molto nel nella nelle niente noi né oggi ogni oppure perché più poi posso "
        "prima puoi può quando quello questa questi questo quindi rifiuto sempre senza sono sopra stato sua sul "
        "sulla suo sì tra tua tuo tutti tutto"
    ),
    "dutch": (
        "aan alle alles als andere bij daar dat deze dit een eerst geen hebben heeft het hier hoe ik ja je jij jouw "
        "jullie kan kunnen kunt maar mij mijn moet moeten naar nee niet nog omdat onder onze ook tegen tussen uit "
        "uw vandaag veel voor weer weiger wel wij worden wordt zal zeer zich zijn zoals zonder zou"
    ),
    "swedish": (
        "alla andra att av bara deras dessa det detta ditt där efter eller ett från för före först göra har hon hur "
        "här inte ja jag kan kommer med mig mycket måste när och också på sedan ska skall skulle som så till utan "
        "vad vem vill vägrar är över"
    ),
    "danish": (
        "af alle andre derefter deres det dette disse dit efter eller fra før først gøre har havde hun hvad hvem "
        "hvordan ikke ja jeg kan kommer kun med meget mig må når nægter og også på skal skulle som så til uden vil"
    ),
    "norwegian": (
        "alle andre av deg deres deretter det dette disse ditt eller etter fra før først gjøre hadde har hun hva "
        "hvem hvordan ikke ja jeg kan kommer med må nei nekter når og også på skal skulle som så til uten veldig "
        "vil"
    ),
    "finnish": (
        "ei eikä ennen ensin että hyvin hän ja joka jonka jos joten jotka jälkeen kaikki kanssa kautta kieltäydyn "
        "koska kuin kun laita minä mitä mukaan mutta myös niin nyt nämä ole olisi olla ovat pitää siihen siinä sinä "
        "sitten sitä tai tämä tämän tässä täytyy vain vielä voi voin voit"
    ),
    "polish": (
        "aby bardzo bez być był czy dla gdy ich jak jako jego jej jest jeśli już każdy kiedy która które który lub "
        "między mogę może można nad najpierw należy nie nim odmawiam oraz potem przed przez przy się są tak także "
        "tego trzeba tylko tym więc wszystko że żeby"
    ),
    "czech": (
        "aby ano bez byl být jak jako je jeho jejich její jen jsou každý když která které který mezi mohu musíte "
        "může můžete nad nebo nejprve není odmítám pak pokud před při tak také tato tedy toho tyto tím třeba už "
        "velmi vám všechno že"
    ),
    "slovak": (
        "aby ako alebo bez bol byť je jeho jej každý keď ktorá ktoré ktorý len medzi musíte môže môžem môžete nad "
        "najprv nie odmietam potom pred pri sú teda tieto tiež toho treba táto tým už veľmi vám všetko zo áno čo že"
    ),
    "croatian": (
        "ako ali bez biti ili iz između je jer kada kako kao koja koje koji mogu može možete nije nisam njegov "
        "odbijam ova ovaj ovo prije prvo samo svaki sve tako također treba vam već vrlo zatim što"
    ),
    "slovenian": (
        "ali ampak bil biti brez iz je kaj kako kateri ker kot lahko mora morem morete najprej nato nisem njegov "
        "pred samo tako tudi vam vse zelo če že"
    ),
    "romanian": (
        "această acest acestea apoi asemenea cu cum când că dacă este fiecare foarte fără mai nici nu pe pentru "
        "poate prin puteți până refuz sau sunt să toate trebuie unde unei unui vă în între întâi îți și"
    ),
    "hungarian": (
        "aki amely azt csak ebben egy először ez ezt ezzel ezért hogy hogyan kell lehet lesz majd minden már még "
        "nem nélkül ott pedig tehát tudok után vagy vannak visszautasítom és így"
    ),
    "turkish": (
        "ama ancak bana ben bir biz bu bunu daha değil edin evet eğer fakat gerekir gibi göre hayır hiçbir ile için "
        "kadar mı nasıl olan olarak olur onun reddediyorum sana siz sonra ve veya yok çok çünkü önce şu"
    ),
    "indonesian": (
        "adalah akan anda antara atau bagaimana bisa dalam dapat dari dengan dia harus ini itu jangan jika juga "
        "kami kamu karena kemudian lalu lebih maaf maka menolak mereka oleh pada pertama saya sebagai semua seperti "
        "setiap sudah tanpa telah tetapi tidak untuk yang"
    ),
    "tagalog": "ako ang dahil hindi ikaw ito iyon kami kaya kung lang maaari mga nang pero sila siya upang",
    "vietnamese": (
        "bạn cho các có cũng của hoặc hãy khi không là mà một người như nhưng những này nếu ra rất sau thì trong "
        "trên trước tôi từ việc và vào về với đó được đến để"
    ),
    "swahili": (
        "baada hili hilo hiyo ili kabla kama katika kila kuwa kwa lakini mimi pia sana sisi siwezi unaweza wewe yeye"
    ),
    "zulu": "cha futhi kanye kodwa kufanele leyo lokho lokhu nga ngoba noma thina ukuthi ukuze uma wena yini",
    "hausa": "amma cikin idan ina ita kana kuma suna wannan yadda zai",
    "somali": "haddii iyo laakiin markaa oo sida uu waa waxaad waxaan",
    "afrikaans": (
        "baie daardie eerste ek geen het hierdie hulle jou jy kan kry maar moet nie nog ook sonder uit vandag vir weer"
    ),
    "catalan": (
        "així això altre amb aquest aquesta cada després ells els fer jo molt més nosaltres perquè però primer puc "
        "quan que segons seva sobre són també vostè vostès és"
    ),
    "welsh": "a'r allaf dydw eich fod gwrthod gyda hefyd hyn i'r mae neu nid ond wedi yn yr",
    "irish": "ach agus bhfuil chun diúltaím liom maith mé ní nó seo sibh sé sí tá tú",
    "scottish gaelic": "ach agus aig airson bha chan eil gu seo sibh thu",
    "albanian": "dhe kjo ky këtë mund më nga një nuk në ose pastaj për që refuzoj të unë është",
    "estonian": (
        "aga ei enne esmalt iga ilma ja keeldun kes kui kõik mis mitte ning ole oma peab pole pärast saab seda "
        "sellega siis või"
    ),
    "latvian": "arī atsakos bez ir ja jūs katrs kā mēs nav nevaru pēc starp uz vai visi vispirms viņi šis šo",
    "lithuanian": (
        "apie atsisakau aš būti ir iš jie jūs kad kaip kiekvienas negaliu nėra pirmiausia tada tai taip tarp turi "
        "visi yra šis šį"
    ),
    "icelandic": (
        "af alla allt að ekki eða frá fyrir getur hann hefur hvað hvernig hún með og svo til við ég það þetta þá þú"
    ),
    "basque": (
        "baina bere beste bezala dago daude dira dizut dute edo eta ezin ezkerra gaur hau honetan hori horretan "
        "nahi naiz nola zer zuen zure"
    ),
    "maltese": "biex bil fil għal għandek hija huma huwa jekk kif ma' mhux minn nista' nistax taħt tista' wara",
    "yoruba": "awọn bí fún gbogbo kò lati láti naa nigba náà ní tabi wọn wọ̀n yii àwọn ó ọ",
    "igbo": "agaghị anyị bụ gị ihe ike ka mgbe na-agụ na-eme ndị nke unu ọ ọzọ",
    "xhosa": "kodwa kuba kunye kwaye nawe ndiya ngoku okanye ukuba uze wakho xa zonke",
    "haitian creole": "ak anpil ap avèk epi fè kapab kijan konsa kote lè mwen nan nou pou sou tout yon",
    "galician": "ao aquí axudar axudarche hoxe moi moito máis nós outra outro pero podo que tamén teu unha xa",
    "latin": (
        "atque aut autem cum deinde enim esse est etiam hic hoc ille nec neque nisi nos nunc possum quam qui quia "
        "quid quod sed sunt tamen tibi ubi ut vel"
    ),
    "esperanto": (
        "ankaŭ aŭ dum ekzemple estas estis ili kaj kiam kiel kio kiu kun laŭ oni por povas povu sed tio tiu tre "
        "unue vi vin ĉar ĉi ĉiu ŝi"
    ),
    "hindi": (
        "aap aapka aapke aapki agar aur baad bahut hai hain hoga hota iska iske isme kar kare karna karne karo "
        "karta kisi koi kya lekin liye madad magar mein mera mujhe nahi nahin pehle phir sabse sakta sakte sakti "
        "tha usko woh yah yeh"
    ),
    "japanese": (
        "anata arimasen boku dake dekimasen deshita desu dewa gozaimasu ii kara kore kudasai kyou mada masen mazu "
        "nai shimasu shitara shite sono sumimasen watashi"
    ),
    "chinese": "bu ge jiu keyi meiyou neng nin ranhou shenme tamen xian yi yige zai zenme zhe zhege zhi",
    "russian": (
        "chto chtoby dlya esli eta eto ikh ili kak kogda mne mogu moy mozhet mozhno nado nam nas nelzya nuzhno "
        "ochen odin ona oni ot po pod pomoch posle potom pri segodnya snachala tak takzhe tebya tolko tozhe vam vas "
        "vash vsyo vy zatem"
    ),
    "arabic": (
        "ana anta awla ayyuha biha fi ghayr hadha hadhihi hatha haza illa inna kayf kul lak laysa mish mumkin "
        "thumma wala ya'ni yumkin"
    ),
    "cebuano": (
        "ako ang apan dili ikaw imong karon kini kining kita kung mao mga naa nga nimo og pinaagi sila siya ug unsa "
        "wala"
    ),
    "uzbek": (
        "agar bilan bo'lsa bor bu bugun emas hamda kerak keyin lekin mumkin qanday qilib qiling siz sizga uchun va "
        "yo'q yoki"
    ),
    "azerbaijani": (
        "amma bilmərəm bilər bir bu edə etmək gün ilə isə kimi lakin mən nə olar olaraq ona onun sizə sonra sənə və "
        "üçün əgər"
    ),
    "javanese": "aku banjur dadi iki iku kanggo karo kowe menawa nganggo ora saka sampeyan utawa wis yen",
    "luxembourgish": (
        "dann dech deem dir domat déi ech eng hunn iech kann keng mech mir nëmmen och oder op sinn vun wann wat wéi zu"
    ),
    "kurdish": "ew ez heye hûn ji ku pir wek xwe û",
    "malagasy": "afaka aho amin'ny anao ary dia ianao ireo izany izao izy misy ny ny'ny raha tsara tsy",
    "shona": "asi chete handi ini iwe kana kuti kwete ndi neku pamusoro uye wobva zvakare",
    "kinyarwanda": "ariko ariya cyane hanyuma iyo kandi kugira nta ntabwo uyu wowe",
    "maori": "ahau ana engari hoki kaore kei koe kāore mō ngā nā rā tēnei tō āku āwhina",
    "malay": "awak boleh dengan enggan ialah jika mereka sahaja sangat tak tidak tolong untuk",
    "norwegian nynorsk": "eg ikkje korleis noko nokre",
    "hmong": "cas hauv koj kuv lawv muaj nrog ntawm nws peb qhov thiab tsis uas yog yuav",
}
# Those of names and titles count beside one of the others.
PARTICLES = words_of(
    "de la el los las en un del al lo se su te tu mi os um le les des du et ne il di van op om er den das der dem im "
    "es na po z w v u da ki o y e az sa ya ng ke au aux ces ce"
)
LANGUAGES_OF: dict[str, tuple[str, ...]] = {}
for _language, _text in FUNCTION_WORDS.items():
    for _word in _text.split():
        LANGUAGES_OF[_word] = (*LANGUAGES_OF.get(_word, ()), _language)
