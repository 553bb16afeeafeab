// Requests to the service, and what went wrong in words.

/** Why a request gave nothing. `kind` is gone, token, large, type, busy, refused or failed; `seconds` is when to try again. */
export class Trouble extends Error {
  constructor(kind, text, seconds = 0) {
    super(text);
    this.kind = kind;
    this.seconds = seconds;
  }
}

export const GONE = 'The service does not answer; trying again.';

/** The answer to a request. Throws Trouble, or an AbortError where the caller gave up. */
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: 'no-store', credentials: 'same-origin', ...options });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Trouble('gone', GONE);
  }
  if (answer.ok) return answer;
  throw trouble(answer.status, await sentence(answer), Number(answer.headers.get('Retry-After')) || 2);
}

async function sentence(answer) {
  try {
    const { error } = await answer.json();
    return typeof error === 'string' ? error : '';
  } catch {
    return '';
  }
}

function trouble(status, text, seconds) {
  switch (status) {
    case 400: return new Trouble('refused', text || 'The service cannot use this picture.');
    case 401: return new Trouble('token', text || 'The service wants its token.');
    case 413: return new Trouble('large', `The picture is too large. ${text}`);
    case 415: return new Trouble('type', `The service cannot read this kind of file. ${text}`);
    case 429: return new Trouble('busy', `You send more requests than the service allows; trying again in ${seconds} s.`, seconds);
    case 503: return new Trouble('busy', `The service is busy; trying again in ${seconds} s.`, seconds);
    default: return new Trouble('failed', `The service answers with an error (${status}). ${text}`);
  }
}

/** A promise for the time after so many seconds. */
export function pause(seconds) {
  return new Promise((done) => setTimeout(done, 1000 * seconds));
}
