// What is known of the engine, in words.

const PRECISIONS = { int8: 'INT8', fp16: 'FP16', bf16: 'BF16', fp32: 'FP32' };

/** Show the engine and its proof. */
export function showEngine(engine) {
  document.title = `${engine.name}: object detection`;
  document.getElementById('title').textContent = engine.name;
  document.getElementById('subtitle').textContent = [
    PRECISIONS[engine.precision] ?? engine.precision,
    engine.backend,
    `${engine.image_size[0]} × ${engine.image_size[1]}`,
    count(engine.classes.length, 'class', 'classes'),
  ].join(' · ');
  const list = document.getElementById('facts');
  list.replaceChildren(...facts(engine).map(([name, text, kind]) => fact(name, text, kind)));
  document.getElementById('engine').hidden = false;
}

function facts(engine) {
  return [
    ['Gate', gate(engine.gate), engine.gate && !engine.gate.passed ? 'warn' : ''],
    ['Precision', precision(engine)],
    ['Accuracy', accuracy(engine.accuracy)],
    ['Calibration', calibration(engine.calibration)],
    ['Speed', speed(engine)],
    ['Built', `${engine.built_at.replace('T', ' ').replace(/\+00:00$/, ' UTC')} by ${engine.backend} ${engine.backend_version} for ${engine.target}`],
    ['File', engine.engine],
    ['SHA-256', engine.sha256, 'hash'],
  ];
}

function gate(verdict) {
  if (!verdict) return 'The engine was not judged.';
  if (verdict.decided_by === 'nothing') return `There was nothing to judge: ${verdict.text}.`;
  return `${verdict.passed ? 'Passed' : 'Not passed'}: ${verdict.text}.`;
}

function precision(engine) {
  const proof = engine.proof;
  const shares = ['int8', 'fp16', 'bf16', 'fp32']
    .map((name) => [name, proof[`${name}_mac_fraction`]])
    .filter(([, share]) => share > 0)
    .map(([name, share]) => `${percent(share)} in ${PRECISIONS[name]}`);
  const told = proof.counted_on === 'engine' ? `as the backend tells of the engine (${proof.source})` : 'as counted in the graph, for the backend tells nothing';
  return `${PRECISIONS[engine.precision] ?? engine.precision}. Of the convolutions’ work runs ${shares.join(', ')}, ${told}.`;
}

function accuracy(measured) {
  if (!measured) return 'It was not measured: no labelled images were given.';
  const where = `on ${count(measured.images, 'image', 'images')} of the split ${measured.split}, by running the ${measured.measured_on}`;
  const own = `AP ${points(measured.AP)}, AP50 ${points(measured.AP50)}, ${where}.`;
  if (measured.drop === null) return own;
  const change = measured.drop >= 0 ? `lost ${measured.drop.toFixed(2)} points` : `gained ${(-measured.drop).toFixed(2)} points`;
  const range = measured.drop_interval
    ? ` (95 % interval of the loss: ${signed(measured.drop_interval[0])} to ${signed(measured.drop_interval[1])})`
    : '';
  return `${own} The FP32 graph has AP ${points(measured.reference_AP)}, so it ${change}${range}.`;
}

function calibration(used) {
  if (!used) return 'None: nothing was quantized by ranges.';
  const from = used.split ? ` of the split ${used.split}` : '';
  return `On ${count(used.images, 'image', 'images')}${from} (choice ${used.choice}, method ${used.method}). The SHA-256 of their list is ${used.manifest_sha256}.`;
}

function speed(engine) {
  if (!engine.latency) return 'It was not measured where it was built.';
  const { median_ms: median, p90_ms: p90, runs, batch } = engine.latency;
  return `A run took ${median.toFixed(1)} ms in the median and ${p90.toFixed(1)} ms in nine of ten, of ${runs} with a batch of ${batch}, where it was built, without decoding.`;
}

function fact(name, text, kind = '') {
  const [pair, term, description] = ['div', 'dt', 'dd'].map((tag) => document.createElement(tag));
  term.textContent = name;
  description.textContent = text;
  description.className = kind;
  pair.append(term, description);
  return pair;
}

function count(number, one, many) {
  return `${number} ${number === 1 ? one : many}`;
}

function percent(share) {
  // What is not all of it must not read so.
  return `${share === 1 ? '100' : Math.min(99.9, 100 * share).toFixed(1)} %`;
}

function points(ap) {
  return (100 * ap).toFixed(1);
}

function signed(value) {
  return value < 0 ? `−${(-value).toFixed(2)}` : value.toFixed(2);
}
