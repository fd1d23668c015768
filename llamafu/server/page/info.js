// What an adapter is, and the heat map of where it changes the model.

import {$, call, draw, fixed, make, size} from "./dom.js";

const COLOURS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const ROW = 22, HEAD = 22, GAP = 1;

/** Open the dialog for an adapter. `remove` is there for those who may delete it. */
export async function openInfo(name, remove) {
  $("info-name").textContent = name;
  $("info-problem").textContent = "";
  $("facts").replaceChildren(make("dd", {class: "dim"}, "Measuring…"));
  $("map").replaceChildren();
  $("info-end").replaceChildren(...(remove ? [removeButton(name, remove)] : []));
  if (!$("info").open) $("info").showModal();
  try {
    const facts = await (await call("GET", `/v1/lora/${encodeURIComponent(name)}/info`)).json();
    if ($("info-name").textContent !== name) return;
    $("facts").replaceChildren(...rows(facts));
    $("map").replaceChildren(...heatMap(facts.norms));
  } catch (error) {
    $("facts").replaceChildren();
    $("info-problem").textContent = error.message;
  }
}

/** Deleting takes two presses. */
function removeButton(name, remove) {
  const button = make("button", {type: "button", class: "danger", click: async () => {
    if (!button.dataset.sure) {
      button.dataset.sure = "yes";
      button.textContent = `Delete the file of ${name} for good`;
      return;
    }
    try {
      await remove();
      $("info").close();
    } catch (error) {
      $("info-problem").textContent = error.message;
    }
  }}, "Delete…");
  return button;
}

function rows(facts) {
  const layers = facts.layers.length ? `${facts.layers.length}, from ${facts.layers[0]} to ${facts.layers.at(-1)}` : "none";
  const used = facts.last_used && new Date(facts.last_used * 1000).toLocaleString([], {dateStyle: "medium", timeStyle: "short"});
  const tokens = facts.invocation_tokens;
  const table = [
    ["Base model", facts.base_model || "not named in the file"],
    ["Rank", `${facts.uniform ? "" : "up to "}${facts.rank}`],
    ["Alpha", facts.alpha ? String(facts.alpha) : "none: strength 1"],
    ["Layers", layers],
    ["Parameters", `${facts.parameters.toLocaleString("en")} as ${facts.dtype}`],
    ["File", size(facts.bytes)],
    ["For everybody", facts.scaling === null ? "not loaded" : `at ${fixed(facts.scaling)}`],
    ...("last_used" in facts ? [["Last used", used || "not known"]] : []),
  ];
  const wide = [
    ["Targets", facts.targets.join(", ")],
    ...(tokens.length ? [["Acts from the invocation tokens", tokens.join(" ")]] : []),
    ["SHA-256", make("code", {}, facts.digest)],
  ];
  const row = (name, value, kind) => make("div", {class: kind}, make("dt", {}, name), make("dd", {}, value));
  return [...table.map(([name, value]) => row(name, value, "")), ...wide.map(([name, value]) => row(name, value, "wide"))];
}

function heatMap(norms) {
  const others = Object.entries(norms.others);
  const modules = [...norms.modules, ...others.map(([name]) => name)];
  const columns = Math.max(norms.layers.length, 1);
  const cell = (row, column) => {
    if (row < norms.modules.length) return [norms.frobenius[column][row], norms.spectral[column][row]];
    return column ? null : Object.values(others[row - norms.modules.length][1]);
  };
  const known = modules.flatMap((_, row) => Array.from({length: columns}, (_, column) => cell(row, column)?.[0]).filter(value => value != null));
  const top = Math.max(...known) || 1;
  const left = Math.max(...modules.map(name => name.length)) * 7.6 + 12;
  const width = Math.max(Math.min(($("map").clientWidth - left - 2) / columns, 26), 6);
  const every = width > 17 ? 1 : 5;
  const readout = make("p", {class: "readout numbers", "aria-live": "polite"}, make("span", {class: "dim"}, "Point at a cell, or walk with the arrow keys."));
  const svg = draw("svg", {width: left + columns * width, height: HEAD + modules.length * ROW, role: "application", tabindex: "0",
    "aria-label": `Heat map: norm of the change by module and layer, ${modules.length} by ${columns}. Arrow keys read one cell after another.`});
  norms.layers.forEach((layer, column) => {
    if (layer % every === 0) svg.append(draw("text", {x: left + (column + .5) * width, y: HEAD - 8, class: "tick"}, layer));
  });
  modules.forEach((name, row) => {
    svg.append(draw("text", {x: left - 8, y: HEAD + row * ROW + 15, class: "module"}, name));
    for (let column = 0; column < columns; column += 1) {
      const value = cell(row, column);
      if (!value) continue;
      svg.append(draw("rect", {x: left + column * width, y: HEAD + row * ROW, width: width - GAP, height: ROW - GAP, rx: 2, class: value[0] === null ? "cell none" : "cell",
        fill: value[0] === null ? "none" : colour(value[0] / top), "data-row": row, "data-column": column, pointerenter: () => tell(row, column)}));
    }
  });
  const mark = draw("rect", {width: width + 1, height: ROW + 1, rx: 3, class: "mark", visibility: "hidden"});
  svg.append(mark);
  let at = [0, 0];
  const tell = (row, column) => {
    at = [row, column];
    mark.setAttribute("x", left + column * width - 1);
    mark.setAttribute("y", HEAD + row * ROW - 1);
    mark.setAttribute("visibility", "visible");
    const [size_, most] = cell(row, column) || [null, null];
    const place = row < norms.modules.length ? `layer ${norms.layers[column]} · ${modules[row]}` : modules[row];
    readout.textContent = size_ === null ? `${place}: not changed` : `${place}: ${size_.toPrecision(3)}, in one direction at most ${most.toPrecision(3)}`;
  };
  svg.addEventListener("focus", () => tell(...at));
  svg.addEventListener("keydown", event => {
    const step = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]}[event.key];
    if (!step) return;
    event.preventDefault();
    tell(Math.min(Math.max(at[0] + step[0], 0), modules.length - 1), Math.min(Math.max(at[1] + step[1], 0), columns - 1));
  });
  return [make("h3", {}, "Where it changes the model"), make("div", {class: "scroll"}, svg), legend(top, known.length < modules.length * norms.layers.length), readout];
}

function legend(top, gaps) {
  const ramp = draw("svg", {width: 160, height: 12, "aria-hidden": "true"},
    ...COLOURS.map((fill, index) => draw("rect", {x: index * 16, width: 16, height: 12, fill})));
  const parts = [make("span", {}, "0"), ramp, make("span", {}, top.toPrecision(3)), make("span", {class: "dim"}, "Frobenius norm of ΔW at scale 1; columns are layers")];
  if (gaps) parts.push(make("span", {class: "dim"}, draw("svg", {width: 14, height: 12, "aria-hidden": "true"}, draw("rect", {x: .5, y: .5, width: 13, height: 11, rx: 2, class: "cell none", fill: "none"})), " not changed"));
  return make("p", {class: "legend numbers"}, ...parts);
}

/** The colour of a share from 0 to 1, between those of the table. */
function colour(share) {
  const place = share * (COLOURS.length - 1), low = Math.min(Math.floor(place), COLOURS.length - 2);
  const part = (text, at) => parseInt(text.slice(at, at + 2), 16);
  const mixed = [1, 3, 5].map(at => Math.round(part(COLOURS[low], at) + (part(COLOURS[low + 1], at) - part(COLOURS[low], at)) * (place - low)));
  return `rgb(${mixed.join(" ")})`;
}
