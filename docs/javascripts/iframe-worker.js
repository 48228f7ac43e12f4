// The search runs in a worker, which browsers refuse to pages that come from files. There a hidden
// frame does its work: same script, same messages, same answers.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.ready = new Promise((resolve) => {
        this.frame.addEventListener("load", () => resolve(this.start(url)), { once: true });
      });
      document.body.append(this.frame);
    }

    // The script's window, once its script has run.
    start(url) {
      const inner = this.frame.contentWindow;
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      return new Promise((resolve, reject) => {
        const script = inner.document.createElement("script");
        script.onload = () => resolve(inner);
        script.onerror = reject;
        script.src = url;
        inner.document.body.append(script);
      });
    }

    // Messages arrive in the order in which they were sent.
    postMessage(data) {
      this.ready = this.ready.then((inner) => {
        inner.dispatchEvent(new MessageEvent("message", { data }));
        return inner;
      });
    }

    terminate() {
      this.frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
