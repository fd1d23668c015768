// One answer as it streams in, with its speed and with what made it.

import {Refusal, call, fixed, make, toldBy} from "./dom.js";

/** A panel that shows one answer at a time. `tokens` counts those of the answer that is shown. */
export function answerOf() {
  const text = make("div", {class: "text", tabindex: "0", role: "log", "aria-label": "Answer", "aria-busy": "false"});
  const made = make("p", {class: "made numbers dim"});
  const node = make("div", {class: "answer"}, text, made);
  const panel = {node, tokens: 0, run};
  text.append(make("span", {class: "empty dim"}, "The answer appears here."));
  return panel;

  async function run(question, signal) {
    text.replaceChildren();
    made.textContent = "";
    node.className = "answer live";
    text.setAttribute("aria-busy", "true");
    panel.tokens = 0;
    const told = {first: 0, last: 0, count: 0, end: "", lora: []};
    try {
      const response = await call("POST", "/v1/chat/completions", {...question, stream: true, stream_options: {include_usage: true}}, signal);
      for await (const chunk of chunksOf(response)) take(chunk, told);
    } catch (error) {
      if (error.name !== "AbortError") {
        node.classList.add("failed");
        text.append(make("p", {class: "bad"}, error instanceof Refusal ? error.message : `The stream broke: ${error.message}`));
        throw error;
      }
      told.end = "stopped";
    } finally {
      node.classList.remove("live");
      text.setAttribute("aria-busy", "false");
      if (told.end) tell(told);
    }
  }

  function take(chunk, told) {
    const choice = chunk.choices[0], piece = choice?.delta?.content;
    if (piece) {
      told.last = performance.now();
      told.first ||= told.last;
      told.count += 1;
      const low = text.scrollHeight - text.scrollTop - text.clientHeight < 24;
      text.append(piece);
      if (low) text.scrollTop = text.scrollHeight;
    }
    if (choice?.finish_reason) told.end = {stop: "complete", length: "cut at the limit"}[choice.finish_reason] || choice.finish_reason;
    if (chunk.lora) told.lora = chunk.lora;
    if (chunk.usage) told.count = chunk.usage.completion_tokens;
    panel.tokens = told.count;
    tell(told);
  }

  function tell(told) {
    const seconds = (told.last - told.first) / 1000;
    const parts = [`${told.count} token${told.count === 1 ? "" : "s"}`];
    if (seconds > 0.05) parts.unshift(`${((told.count - 1) / seconds).toFixed(1)} tokens/s`);
    if (told.end) parts.push(told.end);
    made.replaceChildren(parts.join(" · "));
    for (const one of told.lora) made.append(" · ", make("span", {title: `SHA-256 ${one.digest}`}, `${one.name} ${fixed(one.final_scale)}`));
  }
}

/** The JSON of each event of a stream, to its end. */
async function* chunksOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) throw new Error("it ended before its last token");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      if (!event.startsWith("data: ")) continue;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Refusal(toldBy(event.slice(6)), 0);
      yield chunk;
    }
  }
}
