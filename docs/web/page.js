// The form of docs/browser.md.

const form = document.getElementById("story"), { begin, seed, temperature, tell } = form.elements;
const text = document.getElementById("story-text");
const status = document.getElementById("story-status");
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const say = (what) => { status.textContent = what; };

worker.onerror = () => say("This browser cannot run the core.");
worker.onmessage = ({ data: { ready, error, piece, done } }) => {
  if (error) say(error);
  if (ready) say(`The model is here (${ready}).`);
  if (ready) form.dataset.isa = ready;
  tell.disabled = !(ready || done || (error && form.dataset.isa));
  if (piece) text.textContent += piece;
  if (!done) return;
  form.dataset.ids = JSON.stringify(done.ids);
  const rate = Math.round(done.ids.length / done.seconds);
  const took = done.seconds.toFixed(2);
  say(`${done.ids.length} tokens in ${took} s: ${rate} a second, on this machine's processor.`);
};

form.onsubmit = (event) => {
  event.preventDefault();
  tell.disabled = true;
  delete form.dataset.ids;
  text.textContent = begin.value;
  say("");
  worker.postMessage({
    text: begin.value, most: 256, temperature: temperature.valueAsNumber,
    seed: BigInt(seed.value),
  });
};
