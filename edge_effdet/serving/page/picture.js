// A picture that a person chooses, drops or pastes: it is sent to the service, and its boxes are drawn over it.

import { classColor, countText, drawBoxes } from './drawing.js';
import { ask, pause } from './service.js';

const MOST_TRIES = 4;

const byId = (id) => document.getElementById(id);

export class PictureView {
  #shown;
  #wantToken;
  #found = null;
  #listed = [];
  #marked = -1;
  #address = '';
  #visible = true;
  #work = new AbortController();

  /** `wantToken` is called where the service wants its token, and gives a promise for when it has it. */
  constructor(shown, wantToken) {
    this.#shown = shown;
    this.#wantToken = wantToken;
    shown.addEventListener('change', () => this.#show());
    const input = byId('file');
    input.addEventListener('change', () => {
      if (input.files.length) this.look(input.files[0]);
      // The same file may be chosen again.
      input.value = '';
    });
    document.addEventListener('paste', (event) => this.#take(event.clipboardData, event));
    document.addEventListener('drop', (event) => {
      byId('drop').classList.remove('over');
      // A file that is dropped beside the place for it would else take the place of the page.
      event.preventDefault();
      this.#take(event.dataTransfer, event);
    });
    document.addEventListener('dragover', (event) => {
      event.preventDefault();
      byId('drop').classList.toggle('over', [...event.dataTransfer.types].includes('Files'));
    });
    document.addEventListener('dragleave', (event) => {
      if (!event.relatedTarget) byId('drop').classList.remove('over');
    });
    new ResizeObserver(() => this.#draw()).observe(byId('stage'));
    byId('rows').addEventListener('keydown', (event) => this.#move(event));
    byId('rows').addEventListener('focusin', (event) => this.#mark(event.target));
    byId('rows').addEventListener('pointerover', (event) => this.#mark(event.target));
    byId('rows').addEventListener('pointerleave', () => this.#mark(null));
    byId('rows').addEventListener('focusout', () => this.#mark(null));
    byId('picture').hidden = false;
  }

  /** Send a picture and show what is in it; an earlier one that is still under way is given up. */
  async look(file) {
    this.#work.abort();
    const work = (this.#work = new AbortController());
    this.#forget();
    const name = file.name || 'the picture';
    for (let tries = 1; ; tries += 1) {
      this.#say(`Looking at ${name}.`, 'busy');
      try {
        const begun = performance.now();
        const answer = await ask(`detect?score_threshold=${this.#shown.lowest}`, { method: 'POST', body: file, signal: work.signal });
        const found = await answer.json();
        if (work.signal.aborted) return;
        await this.#preview(file, found.image, work.signal);
        if (work.signal.aborted) return;
        this.#found = found;
        this.#tellTimes(found.milliseconds, performance.now() - begun);
        this.#show();
        this.#say(`${name}: ${countText(this.#listed)} with a score of ${this.#shown.threshold.toFixed(2)} or more.`);
        return;
      } catch (trouble) {
        if (work.signal.aborted) return;
        if (trouble.kind === 'token') {
          this.#say('The picture is sent when the service has its token.');
          await this.#wantToken();
        } else if ((trouble.kind === 'busy' || trouble.kind === 'gone') && tries < MOST_TRIES) {
          this.#say(trouble.message, 'warn');
          await pause(trouble.seconds || 2 * tries);
        } else if (trouble.kind === 'gone') {
          this.#say(`The service does not answer, or does not take ${name}. Is it larger than the service accepts?`, 'warn');
          return;
        } else if (trouble.kind === 'busy') {
          this.#say('The service has been busy for a while; choose the picture again later.', 'warn');
          return;
        } else {
          this.#say(trouble.kind ? trouble.message : `The answer cannot be read (${trouble.message}).`, 'warn');
          return;
        }
        if (work.signal.aborted) return;
      }
    }
  }

  #take(data, event) {
    const file = [...(data?.files ?? [])][0];
    if (!file) return;
    event.preventDefault();
    this.look(file);
  }

  #forget() {
    this.#found = null;
    byId('result').hidden = byId('objects').hidden = true;
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = '';
  }

  async #preview(file, size, signal) {
    const image = byId('picture-image');
    this.#address = URL.createObjectURL(file);
    image.src = this.#address;
    let visible = true;
    try {
      await image.decode();
    } catch {
      visible = false;
    }
    if (signal.aborted) return;
    image.hidden = !visible;
    image.alt = file.name ? `The picture ${file.name}` : 'The picture';
    byId('stage').classList.toggle('blank', !visible);
    byId('stage').style.setProperty('--aspect', String(size.width / size.height));
    byId('result').hidden = false;
    this.#visible = visible;
  }

  #tellTimes(times, whole) {
    const parts = [`The service took ${Math.round(times.total)} ms`];
    parts.push(`${round(times.queue)} waiting, ${round(times.decode)} decoding, ${round(times.infer)} in the engine, ${round(times.suppress)} suppressing`);
    const text = `${parts.join(': ')}. With the way to it and back it was ${Math.round(whole)} ms.`;
    const unseen = this.#visible ? '' : 'This browser cannot show this kind of picture, so its boxes are drawn on an empty ground. ';
    byId('picture-caption').textContent = unseen + text;
  }

  #show() {
    if (!this.#found) return;
    this.#listed = this.#shown.chosen(this.#found.detections);
    this.#marked = -1;
    this.#draw();
    const few = this.#found.detections.length - this.#listed.length;
    byId('objects-caption').textContent = countText(this.#listed) + (few ? `; ${few} more with a lower score or of another class` : '');
    byId('rows').replaceChildren(...this.#listed.map((each, index) => row(each, index)));
    byId('objects').hidden = false;
  }

  #draw() {
    if (this.#found) drawBoxes(byId('boxes'), this.#found.image, this.#listed, byId('stage').clientWidth, this.#marked);
  }

  #mark(target) {
    const chosen = target?.closest('tr');
    const marked = chosen ? Number(chosen.dataset.index) : -1;
    if (marked === this.#marked) return;
    this.#marked = marked;
    this.#draw();
  }

  #move(event) {
    const rows = [...byId('rows').children];
    const at = rows.indexOf(event.target.closest('tr'));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined || !rows[to]) return;
    event.preventDefault();
    for (const each of rows) each.tabIndex = -1;
    rows[to].tabIndex = 0;
    rows[to].focus();
  }

  #say(text, kind = '') {
    const notice = byId('picture-notice');
    notice.textContent = text;
    notice.className = `said ${kind}`;
    byId('picture').setAttribute('aria-busy', String(kind === 'busy'));
  }
}

function row(detection, index) {
  const [left, top, right, bottom] = detection.box;
  const element = document.createElement('tr');
  element.dataset.index = String(index);
  element.tabIndex = index ? -1 : 0;
  const name = document.createElement('th');
  name.scope = 'row';
  const swatch = document.createElement('span');
  swatch.className = 'swatch';
  swatch.style.setProperty('background-color', classColor(detection.class_id));
  name.append(swatch, detection.class);
  element.append(name);
  for (const text of [detection.score.toFixed(2), ...[left, top, right - left, bottom - top].map((value) => String(Math.round(value)))]) {
    const cell = document.createElement('td');
    cell.className = 'number';
    cell.textContent = text;
    element.append(cell);
  }
  return element;
}

function round(value) {
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}
