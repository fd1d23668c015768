// Pictures and sounds that go with the question: dropped, pasted or chosen, and kept until they are taken away.

import {$, make, size} from "./dom.js";

const attached = [];

export const isMedium = file => /^(image|audio)\//.test(file.type);

/** The content of a question: its text, behind what is attached. */
export function contentOf(text) {
  return attached.length ? [...attached.map(one => one.part), {type: "text", text}] : text;
}

/** Attach files that are pictures or sounds. */
export async function attach(files) {
  for (const file of files) {
    const url = await urlOf(file), one = {part: partOf(file, url)};
    const remove = make("button", {type: "button", class: "quiet square", "aria-label": `Take ${file.name} away`, click: () => {
      attached.splice(attached.indexOf(one), 1);
      item.remove();
      $("media").hidden = !attached.length;
      $("prompt").focus();
    }}, "✕");
    const item = make("li", {}, file.name, " ", make("b", {}, size(file.size)), " ", remove);
    attached.push(one);
    $("media").append(item);
    $("media").hidden = false;
  }
}

function urlOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

function partOf(file, url) {
  if (file.type.startsWith("image/")) return {type: "image_url", image_url: {url}};
  return {type: "input_audio", input_audio: {data: url.slice(url.indexOf(",") + 1), format: file.name.split(".").pop().toLowerCase()}};
}
