// The search runs in a worker, and browsers start none from a folder (file://). There, an invisible frame takes its place.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script>var postMessage = parent.postMessage.bind(parent)</script><script src="${url}"></script>`;
      this.loaded = new Promise((done) => this.frame.addEventListener("load", done, { once: true }));
      document.body.append(this.frame);
      this.receive = (event) => {
        if (event.source !== this.frame.contentWindow) return;
        const copy = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(copy);
        if (this.onmessage) this.onmessage(copy);
      };
      addEventListener("message", this.receive);
    }
    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow.postMessage(data, "*"));
    }
    terminate() {
      removeEventListener("message", this.receive);
      this.frame.remove();
    }
  };
}
