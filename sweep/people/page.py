"""The page that people answer on: one image at a time, by key. It needs nothing from elsewhere."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>What does this show?</title>
<meta name="viewport" content="width=device-width">
<style>
  body { font: 18px/1.5 system-ui, sans-serif; color: #222; background: #fff; text-align: center; margin: 2rem auto;
         max-width: 40rem; }
  img { width: 20rem; height: 20rem; image-rendering: pixelated; border: 1px solid #bbb; background: #000; }
  button, input { font: inherit; padding: .3rem .8rem; margin: .15rem; }
  progress { width: 20rem; } [hidden] { display: none; } .quiet { color: #777; font-size: 15px; }
  #trouble { color: #b00020; min-height: 1.5em; }
</style></head><body>
<form id="begin"><h1>What do these images show?</h1>
  <p>You will see images one at a time. Press the digit of the class that you see. Some were changed and some were not:
  there is no trick, and no right answer that you should guess.</p>
  <p><label>Your name <input id="person" maxlength="40" autofocus required></label> <button>Begin</button></p>
  <p class="quiet">Each answer is kept at once. Come back with the same name to go on.</p></form>
<main id="ask" hidden>
  <img id="image" alt="the image to be named">
  <p id="keys"></p>
  <p><button id="unsure">can't tell (space)</button> <button id="back">back (&#8592;)</button></p>
  <p><progress id="progress"></progress> <span id="count" class="quiet"></span></p></main>
<main id="done" hidden><h1>Thank you.</h1><p>All images are answered. You can close this page.</p>
  <p class="quiet">Whoever began this survey fits a crowd on its answers by<br><code id="fit"></code></p>
  <p><button id="again">back (&#8592;)</button></p></main>
<p id="trouble" role="alert"></p>
<script>
"use strict";
const at = id => document.getElementById(id);
let person = "", order = [], answers = {}, here = 0, busy = false;

function show() {
  const over = here >= order.length;
  at("begin").hidden = true; at("ask").hidden = over; at("done").hidden = !over;
  at("progress").max = order.length; at("progress").value = Object.keys(answers).length;
  at("count").textContent = `${Math.min(here + 1, order.length)} of ${order.length}`;
  if (!over) at("image").src = `image/${order[here]}.png`;
}

async function answer(value) {
  if (busy || here >= order.length || at("ask").hidden) return;
  busy = true;
  try {
    const sent = await fetch("answer", {method: "POST", headers: {"Content-Type": "application/json"},
      body: JSON.stringify({person, image: order[here], answer: value})});
    if (!sent.ok) throw new Error(await sent.text());
    answers[order[here]] = value; here += 1; at("trouble").textContent = ""; show();
  } catch (error) { at("trouble").textContent = `Not kept, try again: ${error.message}`; }
  busy = false;
}

function back() { if (here > 0 && !busy) { here -= 1; show(); } }

at("begin").addEventListener("submit", async event => {
  event.preventDefault();
  person = at("person").value;
  const got = await fetch(`state?person=${encodeURIComponent(person)}`);
  if (!got.ok) { at("trouble").textContent = await got.text(); return; }
  const state = await got.json();
  order = state.order; answers = state.answers; at("fit").textContent = state.fit;
  for (let c = 0; c < state.classes; c += 1) {
    const button = document.createElement("button");
    button.textContent = c; button.addEventListener("click", () => answer(c)); at("keys").append(button);
  }
  here = order.findIndex(image => !(image in answers));
  if (here < 0) here = order.length;
  at("trouble").textContent = ""; at("person").blur(); show();
});
at("unsure").addEventListener("click", () => answer(-1));
at("back").addEventListener("click", back);
at("again").addEventListener("click", back);
document.addEventListener("keydown", event => {
  if (at("begin").hidden === false || event.ctrlKey || event.altKey || event.metaKey) return;
  if (/^[0-9]$/.test(event.key)) { event.preventDefault(); answer(Number(event.key)); }
  else if (event.key === " " || event.key === "?") { event.preventDefault(); answer(-1); }
  else if (event.key === "ArrowLeft" || event.key === "Backspace") { event.preventDefault(); back(); }
});
</script></body></html>
"""
