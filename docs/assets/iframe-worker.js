// Search in a page that was opened as a file. Browsers start no Worker from file: addresses, so here a Worker is a
// hidden frame that runs the same script, with messages passed as a Worker would pass them.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = (this.inside = frame.contentWindow)
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      this.addEventListener("message", (event) => this.onmessage && this.onmessage(event))
      // One script after another; what importScripts gives can be awaited, which the search does.
      const load = (address) =>
        new Promise((loaded, failed) => {
          const script = inside.document.createElement("script")
          Object.assign(script, { src: address, async: false, onload: loaded, onerror: failed })
          inside.document.body.append(script)
        })
      inside.importScripts = (...addresses) => Promise.all(addresses.map(load))
      load(new URL(url, location.href).href).then(
        () => this.waiting.splice(0).forEach((data) => this.deliver(data), (this.ready = true)),
        (error) => this.dispatchEvent(new ErrorEvent("error", { error }))
      )
    }
    postMessage(data) {
      if (this.ready) this.deliver(data)
      else this.waiting.push(data)
    }
    deliver(data) {
      this.inside.dispatchEvent(new MessageEvent("message", { data }))
    }
    terminate() {}
  }
}
