// Adapter files, dropped or chosen, sent one after another.

import {$, key, make, size, toldBy} from "./dom.js";
import {attach, isMedium} from "./media.js";

let queue = Promise.resolve();

/** Let files be dropped anywhere. `may()` says whether this key may upload; `done()` is called after each that was taken. */
export function takeFiles(may, done) {
  let depth = 0;
  const veil = shown => {
    $("veil").hidden = !shown;
    $("veil").firstElementChild.textContent = may() ? "Drop adapters to add them, and pictures to ask about them" : "Drop pictures to ask about them; adding adapters takes an admin key";
  };
  const filesIn = event => [...(event.dataTransfer?.types || [])].includes("Files");
  addEventListener("dragenter", event => { if (filesIn(event)) { depth += 1; veil(true); } });
  addEventListener("dragleave", event => { if (filesIn(event) && (depth -= 1) <= 0) { depth = 0; veil(false); } });
  addEventListener("dragover", event => { if (filesIn(event)) event.preventDefault(); });
  addEventListener("drop", event => {
    if (!filesIn(event)) return;
    event.preventDefault();
    depth = 0;
    veil(false);
    const files = [...event.dataTransfer.files];
    attach(files.filter(isMedium));
    if (!may()) return;
    const folders = [...event.dataTransfer.items].filter(item => item.webkitGetAsEntry?.()?.isDirectory).map(item => item.webkitGetAsEntry().name);
    send(files.filter(file => !isMedium(file)), folders, done);
  });
  $("file").addEventListener("change", () => {
    send([...$("file").files], [], done);
    $("file").value = "";
  });
}

function send(files, folders, done) {
  for (const file of files) {
    const row = rowOf(file);
    if (folders.includes(file.name)) row.end("is a folder: drop GGUF files, or copy PEFT folders into the server's folder of adapters", "bad");
    else queue = queue.then(() => row.cancelled || sendOne(file, row, done));
  }
}

function rowOf(file) {
  const state = make("span", {class: "said"}, "waits"), bar = make("progress", {max: 1, value: 0, "aria-label": `Upload of ${file.name}`});
  const button = make("button", {type: "button", class: "quiet square", "aria-label": `Cancel ${file.name}`, click: () => row.button()}, "✕");
  const node = make("li", {}, make("b", {}, file.name), make("span", {class: "dim numbers"}, size(file.size)), button, bar, state);
  const row = {
    cancelled: false,
    button: () => { row.cancelled = true; node.remove(); },
    progress: share => { bar.value = share; state.textContent = share < 1 ? `${Math.floor(share * 100)} %` : "the server checks it"; },
    end: (text, kind) => {
      bar.remove();
      state.textContent = text;
      state.classList.add(kind);
      button.setAttribute("aria-label", `Dismiss ${file.name}`);
      row.button = () => node.remove();
    },
  };
  $("uploads").append(node);
  return row;
}

/** Send one file, by XMLHttpRequest: fetch tells nothing of its progress. */
function sendOne(file, row, done) {
  return new Promise(resolve => {
    const request = new XMLHttpRequest(), form = new FormData();
    form.append("file", file);
    request.open("POST", "/v1/lora/upload");
    for (const [name, value] of Object.entries(key.headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", event => row.progress(event.loaded / event.total));
    request.addEventListener("load", () => {
      if (request.status === 200) {
        row.end("added", "good");
        done();
      } else row.end(toldBy(request.responseText) || `${request.status} ${request.statusText}`, "bad");
    });
    request.addEventListener("error", () => row.end("could not be sent: the connection broke, or the file cannot be read", "bad"));
    request.addEventListener("loadend", resolve);
    row.button = () => { request.abort(); row.end("cancelled", "dim"); };
    request.send(form);
  });
}
