// Which boxes are shown: the lowest score and the classes, for the live view and for a picture.

import { classColor } from './drawing.js';

/** The lowest score that the service keeps for the page. */
export const LOWEST = 0.05;
const MANY = 12;

const byId = (id) => document.getElementById(id);

export class Shown extends EventTarget {
  constructor() {
    super();
    this.threshold = 0.3;
    this.lowest = LOWEST;
    this.names = [];
    this.wanted = new Set();
  }

  /**
   * Begin with the classes, the threshold and the kind of suppression of the engine. Where boxes are fused, a weak one moves the strong one beside it,
   * so pictures are asked for with the threshold itself.
   */
  start(names, threshold, kind) {
    this.lowest = kind === 'fusion' ? threshold : LOWEST;
    this.names = names;
    this.wanted = new Set(names);
    this.threshold = Math.max(LOWEST, threshold);
    const slider = byId('threshold');
    slider.value = String(this.threshold);
    slider.addEventListener('input', () => {
      this.threshold = Number(slider.value);
      this.#tell();
    });
    byId('classes').replaceChildren(...names.map((name, number) => this.#chip(name, number)));
    byId('all').addEventListener('click', () => this.#want(names));
    byId('none').addEventListener('click', () => this.#want([]));
    byId('find-label').hidden = names.length <= MANY;
    byId('find').addEventListener('input', (event) => this.#find(event.target.value));
    byId('shown').hidden = false;
    this.#say();
  }

  /** Those of some detections that are wanted. */
  chosen(detections) {
    return detections.filter((each) => each.score >= this.threshold && this.wanted.has(each.class));
  }

  /** The same choice as a query. */
  query() {
    const query = new URLSearchParams({ score_threshold: this.threshold.toFixed(2) });
    if (this.wanted.size < this.names.length) {
      for (const name of this.wanted.size ? this.wanted : ['']) query.append('class', name);
    }
    return query.toString();
  }

  #chip(name, number) {
    const item = document.createElement('li');
    const label = document.createElement('label');
    const box = document.createElement('input');
    box.type = 'checkbox';
    box.checked = true;
    box.value = name;
    box.addEventListener('change', () => {
      if (box.checked) this.wanted.add(name);
      else this.wanted.delete(name);
      this.#tell();
    });
    const swatch = document.createElement('span');
    swatch.className = 'swatch';
    swatch.style.setProperty('background-color', classColor(number));
    label.append(box, swatch, name);
    item.append(label);
    return item;
  }

  #want(names) {
    this.wanted = new Set(names);
    for (const box of byId('classes').querySelectorAll('input')) box.checked = this.wanted.has(box.value);
    this.#tell();
  }

  #find(text) {
    for (const item of byId('classes').children) {
      item.hidden = !item.textContent.toLowerCase().includes(text.trim().toLowerCase());
    }
  }

  #tell() {
    this.#say();
    this.dispatchEvent(new Event('change'));
  }

  #say() {
    byId('threshold-text').textContent = this.threshold.toFixed(2);
  }
}
