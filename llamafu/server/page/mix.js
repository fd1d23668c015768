// One mix: a strip with a fader for each adapter, and the answer under them.

import {answerOf} from "./answer.js";
import {call, fixed, make} from "./dom.js";

const LOW = Number(document.documentElement.dataset.low), HIGH = Number(document.documentElement.dataset.high);
const STEP = 0.05;
const SHOWN = 8;  // strips of a new mix; the others are in its menu

export class Mix {
  /** `desk` has `adapters`, `rights`, `complain`, `info`, `removed` and `loaded`. */
  constructor(desk, scales) {
    this.desk = desk;
    this.scales = new Map(Object.entries(scales));
    this.mute = new Set();
    this.solo = new Set();
    this.strips = new Map();
    this.letter = make("span", {class: "letter", "aria-hidden": "true"});
    this.title = make("h2");
    this.load = make("button", {type: "button", class: "load", click: () => this.#load()}, "Load for everybody");
    this.drop = make("button", {type: "button", class: "quiet square", click: () => desk.removed(this)}, "✕");
    this.bank = make("div", {class: "bank"});
    this.menu = make("select", {class: "menu", "aria-label": "Add a channel", change: () => this.#add(this.menu.value)});
    this.answer = answerOf();
    this.node = make("section", {class: "card mix"},
      make("header", {class: "row"}, this.letter, this.title, this.drop),
      make("div", {class: "body"}, this.bank, this.answer.node), make("footer", {class: "row"}, this.menu, this.load));
    this.draw();
  }

  /** What is heard: scales by name. */
  heard() {
    const heard = name => this.solo.size ? this.solo.has(name) : !this.mute.has(name);
    return Object.fromEntries([...this.scales].filter(([name, scale]) => scale && heard(name) && this.desk.adapters.includes(name)));
  }

  /** Give it its letter among the mixes: A, B... */
  place(index, alone) {
    const letter = String.fromCharCode(65 + index);
    this.letter.textContent = letter;
    this.node.dataset.mix = letter;
    this.drop.hidden = alone;
    this.drop.setAttribute("aria-label", `Remove mix ${letter}`);
    this.menu.setAttribute("aria-label", `Add a channel to mix ${letter}`);
    this.#tell();
  }

  focus() {
    this.node.querySelector("input, button:not([hidden])")?.focus();
  }

  /** Draw the strips of the adapters that there are now; a fader that is held stays. */
  draw() {
    const known = this.desk.adapters;
    for (const [name, strip] of this.strips) {
      if (known.includes(name)) continue;
      strip.node.remove();
      this.strips.delete(name);
    }
    const room = Math.max(SHOWN, this.strips.size);
    for (const name of known) if (this.scales.get(name) || this.strips.size < room) this.#strip(name);
    const others = known.filter(name => !this.strips.has(name));
    this.menu.replaceChildren(make("option", {value: ""}, `Add a channel (${others.length} more)`),
      ...others.map(name => make("option", {value: name}, name)));
    this.menu.hidden = !others.length;
    this.bank.querySelector(".empty")?.remove();
    if (!known.length) this.bank.append(make("p", {class: "empty dim"}, "No adapters yet: this mix is the base model."));
    this.#tell();
  }

  #strip(name) {
    if (this.strips.has(name)) return;
    const scale = this.scales.get(name) || 0;
    const output = make("output", {class: "numbers"}, fixed(scale));
    const fader = make("input", {type: "range", min: LOW, max: HIGH, step: STEP, value: scale, "aria-label": `Scale of ${name}`,
      input: () => this.#set(name, Number(fader.value))});
    const toggle = (letter, word, set) => {
      const button = make("button", {type: "button", class: `square ${word.toLowerCase()}`, "aria-label": `${word} ${name}`,
        title: word, "aria-pressed": "false", click: () => {
          set.has(name) ? set.delete(name) : set.add(name);
          button.setAttribute("aria-pressed", set.has(name));
          this.#tell();
        }}, letter);
      return button;
    };
    const node = make("div", {class: "strip", role: "group", "aria-label": name},
      make("button", {type: "button", class: "name", title: `${name}: what it is, and where it changes the model`,
        "aria-label": `About ${name}`, click: () => this.desk.info(name)}, make("span", {}, name)),
      make("div", {class: "well"}, make("div", {class: "marks", "aria-hidden": "true"}, make("i"), make("i"), make("i"), make("i"), make("i")), fader),
      output, make("div", {class: "keys"}, toggle("M", "Mute", this.mute), toggle("S", "Solo", this.solo)));
    this.strips.set(name, {node, fader, output});
    this.bank.append(node);
    this.#fill(name);
  }

  #add(name) {
    if (!name) return;
    this.#strip(name);
    this.draw();
    this.strips.get(name).fader.focus();
  }

  #set(name, scale) {
    this.scales.set(name, scale);
    this.strips.get(name).output.textContent = fixed(scale);
    this.#fill(name);
    this.#tell();
  }

  /** How far the track is filled: from 0 to the scale. */
  #fill(name) {
    const at = scale => (scale - LOW) / (HIGH - LOW) * 100;
    const scale = this.scales.get(name) || 0, zero = at(Math.min(Math.max(0, LOW), HIGH)), {fader} = this.strips.get(name);
    fader.style.setProperty("--from", `${Math.min(zero, at(scale))}%`);
    fader.style.setProperty("--to", `${Math.max(zero, at(scale))}%`);
    fader.setAttribute("aria-valuetext", fixed(scale));
  }

  #tell() {
    const heard = this.heard();
    const parts = Object.entries(heard).map(([name, scale]) => `${name} ${fixed(scale)}`);
    this.title.textContent = parts.join(" + ") || "base model";
    this.node.setAttribute("aria-label", `Mix ${this.letter.textContent}: ${this.title.textContent}`);
    this.load.hidden = this.desk.rights !== "admin" || !parts.length;
    for (const [name, strip] of this.strips) strip.node.classList.toggle("off", !(name in heard));
  }

  async #load() {
    const loras = Object.entries(this.heard()).map(([name, scaling]) => ({name, scaling}));
    await this.desk.attempt(() => call("POST", "/v1/lora/load", {loras}));
  }
}
