// What is drawn on canvases: spectrograms, waveforms, and the strip on which a curve is drawn by hand.

// Some colours of viridis, between which a level is interpolated.
const SHADES = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const POINTS = 33;

export function spectrogram(canvas, { width, height, bytes }) {
  canvas.width = width;
  canvas.height = height;
  const levels = Uint8Array.from(atob(bytes), (sign) => sign.charCodeAt(0));
  const image = new ImageData(width, height);
  levels.forEach((level, index) => {
    const place = (level / 255) * (SHADES.length - 1);
    const low = Math.min(Math.floor(place), SHADES.length - 2);
    for (let part = 0; part < 3; part++) {
      image.data[4 * index + part] = SHADES[low][part] + (place - low) * (SHADES[low + 1][part] - SHADES[low][part]);
    }
    image.data[4 * index + 3] = 255;
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

export function waveform(canvas, { low, high }) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  context.fillStyle = getComputedStyle(canvas).color;
  const step = width / low.length;
  // One scale for all clips, so that a quieter clip looks quieter.
  low.forEach((least, index) => {
    const top = (0.5 - Math.min(1, high[index]) / 2) * height;
    const bottom = (0.5 - Math.max(-1, least) / 2) * height;
    context.fillRect(index * step, top, Math.max(1, step - 0.5), Math.max(1, bottom - top));
  });
}

export const CURVES = {
  constant: () => 1,
  rise: (share) => share,
  fall: (share) => 1 - share,
  swell: (share) => 1 - Math.abs(2 * share - 1),
};

export const evenly = (of) => Array.from({ length: POINTS }, (_, index) => round(of(index / (POINTS - 1))));

// A curve of POINTS factors from -1 to 1 over the clip. `changed` is called when a stroke has ended.
export class Strip {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.factors = evenly(CURVES.constant);
    this.last = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      this.last = null;
      this.#touch(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons && this.last && this.#touch(event));
    // A touch that the system takes over ends the stroke as well.
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => {
      if (this.last) changed([...this.factors]);
      this.last = null;
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(factors) {
    this.factors = [...factors];
    this.draw();
  }

  #touch(event) {
    const box = this.canvas.getBoundingClientRect();
    const within = (value) => Math.min(1, Math.max(0, value));
    const at = Math.round(within((event.clientX - box.left) / box.width) * (POINTS - 1));
    const factor = round(1 - 2 * within((event.clientY - box.top) / box.height));
    const from = this.last ?? { at, factor };
    const [first, final] = [Math.min(from.at, at), Math.max(from.at, at)];
    for (let index = first; index <= final; index++) {
      const share = at === from.at ? 1 : (index - from.at) / (at - from.at);
      this.factors[index] = round(from.factor + share * (factor - from.factor));
    }
    this.last = { at, factor };
    this.draw();
  }

  draw() {
    const { canvas, factors } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const colour = getComputedStyle(canvas).color;
    const y = (factor) => height / 2 - (factor * (height - 8)) / 2;
    const x = (index) => (index / (POINTS - 1)) * width;
    context.strokeStyle = context.fillStyle = colour;
    context.globalAlpha = 0.5;
    context.setLineDash([4, 4]);
    context.beginPath();
    context.moveTo(0, y(0));
    context.lineTo(width, y(0));
    context.stroke();
    context.setLineDash([]);
    const line = new Path2D();
    factors.forEach((factor, index) => line.lineTo(x(index), y(factor)));
    const area = new Path2D(line);
    area.lineTo(width, y(0));
    area.lineTo(0, y(0));
    context.globalAlpha = 0.2;
    context.fill(area);
    context.globalAlpha = 1;
    context.lineWidth = 2;
    context.stroke(line);
  }
}

function round(value) {
  return Math.round(value * 100) / 100;
}
