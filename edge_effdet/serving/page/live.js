// The live view: a stream of pictures with boxes that the service draws, and figures beside it.

import { countText } from './drawing.js';
import { ask, pause } from './service.js';

const LOOK_EVERY = 1;
const SETTLE = 200;
const STATES = { starting: 'starting', running: 'running', waiting: 'away', failed: 'failed', stopped: 'stopped' };

const byId = (id) => document.getElementById(id);

export class LiveView {
  #shown;
  #tell;
  #paused = false;
  #lost = false;
  #still = window.matchMedia('(prefers-reduced-motion: reduce)').matches;
  #timer = 0;
  #opened = 0;

  /** `tell` is called with Trouble, or with null where the service answers. */
  constructor(shown, tell) {
    this.#shown = shown;
    this.#tell = tell;
  }

  start() {
    byId('live').hidden = false;
    byId('pause').addEventListener('click', () => this.#setPaused(!this.#paused));
    this.#shown.addEventListener('change', () => {
      clearTimeout(this.#timer);
      // A slider that is being moved gives many values.
      this.#timer = setTimeout(() => this.#open(), SETTLE);
    });
    document.addEventListener('visibilitychange', () => {
      if (document.hidden) this.#close();
      else this.#open();
    });
    const image = byId('live-image');
    image.addEventListener('load', () => this.#arrived());
    image.addEventListener('error', () => {
      // The figures tell why, and the stream is opened again when they come.
      if (image.hasAttribute('src')) this.#lost = true;
    });
    this.#open();
    this.#watch();
  }

  #open() {
    if (this.#paused || document.hidden) return;
    this.#lost = false;
    this.#keep();
    // A browser does not ask again for an address that it has had a picture from.
    this.#opened += 1;
    byId('live-image').src = `live.mjpeg?${this.#shown.query()}&again=${this.#opened}`;
    this.#look();
  }

  /** Show the picture that is there as a still one, until another comes. */
  #keep() {
    const [image, still] = [byId('live-image'), byId('live-still')];
    if (image.hidden || !image.naturalWidth) return;
    [still.width, still.height] = [image.naturalWidth, image.naturalHeight];
    still.getContext('2d').drawImage(image, 0, 0);
    still.hidden = false;
    image.hidden = true;
  }

  #close() {
    byId('live-image').removeAttribute('src');
  }

  #arrived() {
    if (this.#paused) return;
    byId('live-image').hidden = false;
    byId('live-still').hidden = true;
    if (!this.#still) return;
    // Who wants less motion gets one picture, and more by the button.
    this.#still = false;
    this.#setPaused(true);
  }

  #setPaused(paused) {
    this.#paused = paused;
    byId('pause').textContent = paused ? 'Play' : 'Pause';
    if (!paused) {
      this.#open();
      return;
    }
    this.#keep();
    this.#close();
  }

  async #watch() {
    for (;;) {
      await pause(LOOK_EVERY);
      if (!document.hidden) await this.#look();
    }
  }

  async #look() {
    try {
      const state = await (await ask(`live.json?${this.#shown.query()}`)).json();
      this.#tell(null);
      this.#show(state);
      if (this.#lost && !this.#paused) this.#open();
    } catch (trouble) {
      this.#lost = true;
      byId('live-state').textContent = trouble.kind === 'gone' ? 'no answer' : 'unknown';
      byId('live-state').className = 'state warn';
      this.#tell(trouble);
    }
  }

  #show(state) {
    const full = this.#lost && state.viewers >= state.most_viewers;
    const badge = byId('live-state');
    badge.textContent = this.#paused ? 'paused' : STATES[state.state] ?? state.state;
    badge.className = state.state === 'running' ? 'state well' : 'state warn';
    const problem = full
      ? `${state.most_viewers} viewers watch already, which is the most; trying again.`
      : state.state === 'running' ? '' : state.problem || 'Waiting for the first frame.';
    byId('live-problem').textContent = problem;
    byId('live-problem').hidden = !problem;
    byId('live-image').alt = `Live picture of ${state.source} with boxes`;
    byId('live-source').textContent = `Source: ${state.source}`;
    if (!this.#paused) byId('live-counts').textContent = state.number ? `${countText(state.detections)}.` : 'No frame has come so far.';
    byId('live-rate').textContent = state.rate.toFixed(1);
    byId('live-latency').textContent = milliseconds(state.latency_ms);
    byId('live-behind').textContent = milliseconds(this.#paused ? null : state.behind_ms);
    byId('live-dropped').textContent = String(state.dropped + state.skipped);
    if (state.image) byId('live').style.setProperty('--aspect', String(state.image.width / state.image.height));
  }
}

function milliseconds(value) {
  return value === null ? '–' : `${Math.round(value)} ms`;
}
