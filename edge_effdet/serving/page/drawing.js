// Boxes over a picture, as SVG.

const SVG = 'http://www.w3.org/2000/svg';
// Pixels of the page, where the picture is wide and where it is narrow.
const [FONT, SMALL_FONT, NARROW] = [13, 10, 480];
const MOST_NAMED = 40;

/** The colour in which the service draws a class too: hues a golden ratio of the colour wheel apart. */
export function classColor(classId) {
  const [red, green, blue] = classRgb(classId);
  return `rgb(${red}, ${green}, ${blue})`;
}

function classRgb(classId) {
  // HSV with a saturation of 0.85 and a value of 0.95.
  const hue = ((classId * 0.618034) % 1) * 6;
  const channel = (shift) => {
    const place = (shift + hue) % 6;
    return Math.round(255 * 0.95 * (1 - 0.85 * Math.max(0, Math.min(place, 4 - place, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}

/** Draw the boxes of detections, the best last, so that it lies on top. `width` is how wide the picture is shown, in pixels of the page. */
export function drawBoxes(svg, size, detections, width, marked) {
  svg.setAttribute('viewBox', `0 0 ${size.width} ${size.height}`);
  const unit = size.width / Math.max(1, width);
  const font = unit * (width < NARROW ? SMALL_FONT : FONT);
  const order = detections.map((_, index) => index).reverse();
  const lines = order.map((index) => box(detections[index], unit, index === marked));
  const named = detections.length <= MOST_NAMED ? order : [];
  const labels = named.filter((index) => index !== marked).map((index) => label(detections[index], font));
  if (detections[marked]) labels.push(label(detections[marked], font));
  svg.replaceChildren(...lines, ...labels);
  // A text has a width when it is in the page.
  for (const each of labels) place(each, size, font);
}

function box(detection, unit, isMarked) {
  const [left, top, right, bottom] = detection.box;
  const element = make('rect', { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) });
  element.setAttribute('fill', isMarked ? classColor(detection.class_id) : 'none');
  element.setAttribute('fill-opacity', '0.25');
  element.setAttribute('stroke', classColor(detection.class_id));
  element.setAttribute('stroke-width', String(unit * (isMarked ? 4 : 2)));
  return element;
}

function label(detection, font) {
  const [left, top] = detection.box;
  const [red, green, blue] = classRgb(detection.class_id);
  const group = make('g', { 'data-left': left, 'data-top': top });
  const ground = make('rect', {});
  ground.setAttribute('fill', classColor(detection.class_id));
  const words = make('text', { 'font-size': font });
  // How bright the eye sees the ground decides, as in the Web Content Accessibility Guidelines.
  words.setAttribute('fill', luminance(red, green, blue) > 0.18 ? '#000' : '#fff');
  words.textContent = `${detection.class} ${detection.score.toFixed(2)}`;
  group.append(ground, words);
  return group;
}

/** Put a label above the corner of its box, or inside where there is no room above. */
function place(group, size, font) {
  const [ground, words] = group.children;
  const [width, height] = [words.getComputedTextLength() + 0.6 * font, 1.35 * font];
  const x = Math.max(0, Math.min(Number(group.dataset.left), size.width - width));
  const top = Number(group.dataset.top);
  const y = top - height >= 0 ? top - height : Math.max(0, top);
  set(ground, { x, y, width, height });
  set(words, { x: x + 0.3 * font, y: y + font });
}

function luminance(...channels) {
  const [red, green, blue] = channels.map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function make(name, attributes) {
  return set(document.createElementNS(SVG, name), attributes);
}

function set(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value.toFixed(2));
  return element;
}

/** How many of each class, in words: "12 objects: 10 RBC, 2 WBC". */
export function countText(detections) {
  if (!detections.length) return 'No objects';
  const counts = new Map();
  for (const each of detections) counts.set(each.class, (counts.get(each.class) ?? 0) + 1);
  const parts = [...counts].sort((one, other) => other[1] - one[1]).map(([name, count]) => `${count} ${name}`);
  return `${detections.length} object${detections.length === 1 ? '' : 's'}: ${parts.join(', ')}`;
}
