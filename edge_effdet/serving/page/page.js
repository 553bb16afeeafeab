// The page: asks which engine runs, and starts its parts.

import { showEngine } from './engine.js';
import { LiveView } from './live.js';
import { PictureView } from './picture.js';
import { ask, pause } from './service.js';
import { Shown } from './shown.js';

const LOOK_EVERY = 5;
const SHOWN_FOR = 4000;

const byId = (id) => document.getElementById(id);
let entered = null;
let noticed = '';

/** Show what is wrong with the service; null where nothing is. */
function tell(trouble) {
  const notice = byId('notice');
  if (trouble?.kind === 'token') {
    wantToken();
    return;
  }
  const text = trouble ? trouble.message : '';
  if (text === noticed) return;
  const back = noticed && !text;
  noticed = text;
  notice.textContent = back ? 'The service answers again.' : text;
  notice.className = back ? 'notice' : 'notice warn';
  notice.hidden = !notice.textContent;
  if (back) setTimeout(() => { if (!noticed) notice.hidden = true; }, SHOWN_FOR);
}

/** Ask a person for the token. The promise is kept when the service has taken it. */
function wantToken() {
  if (entered) return entered;
  byId('token').hidden = false;
  byId('token-text').focus();
  const form = byId('token-form');
  entered = new Promise((done) => {
    const submit = async (event) => {
      event.preventDefault();
      byId('token-problem').textContent = '';
      try {
        await ask('session', { method: 'POST', body: byId('token-text').value });
      } catch (trouble) {
        byId('token-problem').textContent = trouble.message;
        return;
      }
      form.removeEventListener('submit', submit);
      byId('token-text').value = '';
      byId('token').hidden = true;
      byId('main').focus();
      entered = null;
      done();
    };
    form.addEventListener('submit', submit);
  });
  return entered;
}

async function engine() {
  for (;;) {
    try {
      const found = await (await ask('engine')).json();
      tell(null);
      return found;
    } catch (trouble) {
      if (trouble.kind === 'token') await wantToken();
      else {
        tell(trouble);
        await pause(2);
      }
    }
  }
}

async function watchService() {
  for (;;) {
    await pause(LOOK_EVERY);
    if (document.hidden) continue;
    try {
      await ask('v2/health/live');
      tell(null);
    } catch (trouble) {
      tell(trouble);
    }
  }
}

const found = await engine();
const shown = new Shown();
shown.start(found.classes, found.score_threshold, found.nms_kind);
showEngine(found);
new PictureView(shown, wantToken);
const watches = document.documentElement.dataset.live === 'yes';
document.body.classList.toggle('watches', watches);
if (watches) new LiveView(shown, tell).start();
else watchService();
