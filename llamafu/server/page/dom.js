// What every part of the page uses: elements, numbers, and the server.

export const $ = id => document.getElementById(id);

/** Make an element. Texts stay texts: nothing here is ever read as markup. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const fixed = number => number.toFixed(2).replace("-", "−");

export function size(bytes) {
  const units = ["bytes", "KB", "MB", "GB"];
  let unit = 0;
  for (; bytes >= 1000 && unit < 3; unit += 1) bytes /= 1000;
  return `${unit ? bytes.toFixed(1) : bytes} ${units[unit]}`;
}

/** The key of this tab. */
export const key = {
  get: () => sessionStorage.getItem("key") || "",
  set: value => value ? sessionStorage.setItem("key", value) : sessionStorage.removeItem("key"),
  headers: () => key.get() ? {"Authorization": `Bearer ${key.get()}`} : {},
};

/** A refusal of the server, in its words. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Ask the server; a body is sent as JSON. */
export async function call(method, path, body, signal) {
  const headers = key.headers();
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {method, headers, body: JSON.stringify(body), signal});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. The desk goes on when it is back.", 0);
  }
  if (answer.ok) return answer;
  throw new Refusal(toldBy(await answer.text()) || `${answer.status} ${answer.statusText}`, answer.status);
}

/** The message in the body of a refusal, "" where there is none. */
export function toldBy(text) {
  try {
    return String(JSON.parse(text).message || "");
  } catch {
    return "";
  }
}
