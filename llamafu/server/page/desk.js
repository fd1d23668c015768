// The desk: who may enter, which adapters there are, and all mixes answering at once.

import {$, call, fixed, key, make} from "./dom.js";
import {openInfo} from "./info.js";
import {attach, contentOf, isMedium} from "./media.js";
import {Mix} from "./mix.js";
import {takeFiles} from "./upload.js";

const MOST = 5;  // mixes: a browser opens six connections to a server, and one stays free
const LOOK = 4000;  // milliseconds between two looks at what the server has

const desk = {
  adapters: [],
  rights: null,
  info: name => openInfo(name, desk.rights === "admin" && (() => remove(name))),
  removed: mix => {
    mixes.splice(mixes.indexOf(mix), 1);
    mix.node.remove();
    place();
    mixes[0].focus();
  },
  attempt: async action => {
    try {
      await action();
      await look();
    } catch (error) {
      complain(error);
    }
  },
};
const mixes = [];
let running = null, entered = false, seen = "";

function complain(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error ? error.message : "";
  $("problem").dataset.status = error ? error.status ?? "" : "";
}

/** Show the gate, with what was wrong with the key. */
function close(told) {
  entered = false;
  $("gate").hidden = false;
  $("desk").hidden = $("leave").hidden = true;
  $("state").textContent = "";
  $("refused").textContent = told;
  $("key").setAttribute("aria-invalid", Boolean(told));
  $("key").focus();
}

/** Enter with the key that there is, or with none where the server takes none. */
async function enter() {
  try {
    desk.rights = (await (await call("GET", "/v1/auth/permission")).json()).permission;
    await look();
  } catch (error) {
    if (error.status !== 401) return close(error.message);
    const tried = key.get();
    key.set("");
    return close(tried ? "This key is not known here. Look for it where the server was started." : "");
  }
  entered = true;
  $("key").value = $("refused").textContent = "";
  $("gate").hidden = true;
  $("desk").hidden = false;
  $("leave").hidden = !key.get();
  $("admin").hidden = desk.rights !== "admin";
  if (!mixes.length) {
    add({});
    add(desk.adapters.length ? {[desk.adapters[0]]: 1} : {});
  }
  mixes.forEach(mix => mix.draw());
  $("prompt").focus();
}

/** Take over what the server has now; what has not changed is left alone. */
async function look() {
  const [models, active] = await Promise.all(["/v1/models", "/v1/lora"].map(async path => (await (await call("GET", path)).json()).data));
  if ($("problem").dataset.status === "0") complain(null);
  const now = JSON.stringify([models.map(model => model.id), active, desk.rights]);
  if (now === seen) return;
  seen = now;
  desk.adapters = models.filter(model => model.parent && !model.lora).map(model => model.id);
  const count = desk.adapters.length;
  $("state").replaceChildren(make("b", {}, models[0].id), ` ${count} adapter${count === 1 ? "" : "s"} · ${desk.rights} key`);
  $("active").replaceChildren(...active.map(card => make("li", {}, card.id, " ", make("b", {}, fixed(card.scaling)))));
  if (!active.length) $("active").append(make("li", {class: "none"}, "none: the base model"));
  $("unload").disabled = !active.length;
  mixes.forEach(mix => mix.draw());
}

async function remove(name) {
  await call("DELETE", `/v1/lora/${encodeURIComponent(name)}`);
  await look();
}

function add(scales) {
  const mix = new Mix(desk, scales);
  mixes.push(mix);
  $("mixes").append(mix.node);
  place();
  return mix;
}

function place() {
  mixes.forEach((mix, index) => mix.place(index, mixes.length === 1));
  $("more").hidden = mixes.length === MOST;
}

async function answerAll() {
  if (running || !$("ask").reportValidity()) return;
  complain(null);
  running = new AbortController();
  $("go").disabled = true;
  $("stop").disabled = false;
  const start = performance.now(), {signal} = running;
  const rate = () => {
    const total = mixes.reduce((sum, mix) => sum + mix.answer.tokens, 0), seconds = (performance.now() - start) / 1000;
    $("rate").textContent = `${(total / seconds).toFixed(1)} tokens/s together`;
  };
  const timer = setInterval(rate, 200);
  const question = {messages: [{role: "user", content: contentOf($("prompt").value)}], max_tokens: $("length").valueAsNumber, temperature: $("heat").valueAsNumber};
  await Promise.allSettled(mixes.map(mix => mix.answer.run({...question, lora: mix.heard()}, signal)));
  clearInterval(timer);
  rate();
  running = null;
  $("go").disabled = false;
  $("stop").disabled = true;
}

function theme(next) {
  const order = ["auto", "light", "dark"], now = localStorage.getItem("theme") || "auto";
  const chosen = next ? order[(order.indexOf(now) + 1) % order.length] : now;
  localStorage.setItem("theme", chosen);
  document.documentElement.dataset.theme = chosen;
  $("theme").textContent = {auto: "◐ Auto", light: "○ Light", dark: "● Dark"}[chosen];
  $("theme").setAttribute("aria-label", `Colours: ${chosen}. Press for the next`);
}

theme(false);
$("theme").addEventListener("click", () => theme(true));
$("leave").addEventListener("click", () => { running?.abort(); key.set(""); close(""); });
$("login").addEventListener("submit", event => { event.preventDefault(); key.set($("key").value.trim()); enter(); });
$("ask").addEventListener("submit", event => { event.preventDefault(); answerAll(); });
$("more").addEventListener("click", () => add(Object.fromEntries(desk.adapters.slice(0, 2).map(name => [name, .5]))).focus());
$("unload").addEventListener("click", () => desk.attempt(() => call("POST", "/v1/lora/unload")));
$("attach").addEventListener("click", () => $("medium").click());
$("medium").addEventListener("change", () => { attach([...$("medium").files]); $("medium").value = ""; });
$("prompt").addEventListener("paste", event => attach([...event.clipboardData.files].filter(isMedium)));
$("stop").addEventListener("click", () => running?.abort());
$("close").addEventListener("click", () => $("info").close());
$("info").addEventListener("click", event => { if (event.target === $("info")) $("info").close(); });
addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && entered) answerAll();
  if (event.key === "Escape" && !$("info").open) running?.abort();
});
takeFiles(() => desk.rights === "admin" && entered, () => look().catch(complain));
setInterval(() => {
  if (!entered || running || document.hidden) return;
  look().catch(error => error.status === 401 ? enter() : complain(error));
}, LOOK);
enter();
