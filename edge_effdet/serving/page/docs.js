// The OpenAPI document of the service, for people.

import { ask } from './service.js';

const EXAMPLE_BASE = 'http://127.0.0.1:8080';
const METHODS = ['get', 'post'];

const main = document.getElementById('main');

function make(tag, text = '', kind = '') {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function show(description) {
  document.title = description.info.title;
  document.getElementById('title').textContent = description.info.title;
  const about = make('section');
  about.append(make('p', description.info.description), make('p', `Version ${description.info.version}, OpenAPI ${description.openapi}.`, 'quiet'));
  main.replaceChildren(about, ...description.tags.map((tag) => group(description, tag)), types(description));
}

function group(description, tag) {
  const section = make('section');
  section.append(make('h2', tag.name), make('p', tag.description, 'quiet'));
  for (const [path, item] of Object.entries(description.paths)) {
    for (const method of METHODS.filter((each) => item[each]?.tags.includes(tag.name))) section.append(operation(description, path, method, item[method]));
  }
  return section;
}

function operation(description, path, method, what) {
  const article = make('article');
  article.id = what.operationId;
  const title = make('h3');
  title.append(make('span', method.toUpperCase(), 'method'), make('code', path));
  article.append(title, make('p', what.summary));
  if (what.description) article.append(make('p', what.description, 'quiet'));
  for (const sample of what['x-codeSamples'] ?? []) article.append(code(sample.source, `Example of ${what.summary}`));
  const parameters = (what.parameters ?? []).map((each) => found(description, each));
  if (parameters.length) {
    article.append(make('h4', 'Parameters'), table(`Parameters of ${path}`, ['Name', 'What'], parameters.map((each) => [each.name, `${each.description} In the ${each.in}: ${kindOf(each.schema)}.`])));
  }
  if (what.requestBody) article.append(make('h4', 'Body'), make('p', Object.keys(what.requestBody.content).join(', '), 'quiet'));
  const answers = Object.entries(what.responses).map(([status, answer]) => [status, found(description, answer)]);
  article.append(make('h4', 'Answers'), table(`Answers of ${path}`, ['Status', 'What', 'As'], answers.map(([status, answer]) => [status, answer.description, contentOf(answer)]), 'short'));
  for (const [, answer] of answers.filter(([status]) => status.startsWith('2'))) {
    for (const content of Object.values(answer.content ?? {})) {
      if (content.example) article.append(code(JSON.stringify(content.example, null, 2), `An answer of ${path}`));
    }
  }
  return article;
}

function types(description) {
  const section = make('section');
  section.append(make('h2', 'Types'), make('p', 'The objects of JSON that requests and answers are made of.', 'quiet'));
  for (const [name, schema] of Object.entries(description.components.schemas)) {
    const article = make('article');
    article.id = `type-${name}`;
    const rows = Object.entries(schema.properties).map(([field, each]) => [
      field,
      kindOf(each) + (schema.required.includes(field) ? '' : ', where it is there'),
      each.description ?? '',
    ]);
    article.append(make('h3', name));
    if (schema.description) article.append(make('p', schema.description, 'quiet'));
    article.append(table(`Fields of ${name}`, ['Name', 'Type', 'What'], rows));
    section.append(article);
  }
  return section;
}

/** What a reference leads to. */
function found(description, what) {
  if (!what.$ref) return what;
  return what.$ref.split('/').slice(1).reduce((part, name) => part[name], description);
}

function contentOf(answer) {
  return Object.entries(answer.content ?? {}).map(([name, { schema }]) => [schema?.$ref?.split('/').at(-1), name].filter(Boolean).join(' as ')).join(', ');
}

/** A schema in words. */
function kindOf(schema) {
  if (schema.$ref) return schema.$ref.split('/').at(-1);
  if (schema.anyOf) return schema.anyOf.map(kindOf).join(' or ');
  if (schema.type === 'array') return `list of ${kindOf(schema.items ?? {})}`;
  const parts = [[].concat(schema.type ?? 'anything').join(' or ')];
  if (schema.enum) parts.push(schema.enum.map((each) => JSON.stringify(each)).join(', '));
  if (schema.minimum !== undefined) parts.push(schema.maximum === undefined ? `from ${schema.minimum}` : `${schema.minimum} to ${schema.maximum}`);
  if (schema.default !== undefined) parts.push(`${schema.default} where it is not given`);
  return parts.join(', ');
}

function table(name, head, rows, kind = '') {
  const holder = make('div', '', 'scroll');
  const element = make('table', '', kind);
  const [top, body] = [make('thead'), make('tbody')];
  const titles = make('tr');
  for (const text of head) {
    const cell = make('th', text);
    cell.scope = 'col';
    titles.append(cell);
  }
  top.append(titles);
  for (const [first, ...others] of rows) {
    const row = make('tr');
    const cell = make('th');
    cell.scope = 'row';
    cell.append(make('code', first));
    row.append(cell, ...others.map((text) => make('td', text)));
    body.append(row);
  }
  element.setAttribute('aria-label', name);
  element.append(top, body);
  holder.append(element);
  return holder;
}

function code(text, name) {
  const element = make('pre');
  const here = new URL('.', document.baseURI).href.replace(/\/$/, '');
  element.append(make('code', text.replaceAll(EXAMPLE_BASE, here)));
  // What is wider than the window is scrolled by keys too.
  element.tabIndex = 0;
  element.setAttribute('role', 'region');
  element.setAttribute('aria-label', name);
  return element;
}

try {
  show(await (await ask('openapi.json')).json());
} catch (trouble) {
  const notice = document.getElementById('notice');
  notice.textContent = trouble.message;
  notice.className = 'notice warn';
  notice.hidden = false;
}
