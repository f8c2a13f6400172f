// A file of `afmi export` in onnxruntime-web: one image in, its class and map out.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

export class ExplainedNetwork {
  /** Load a file and what it says of itself: labels, image size, how pictures are prepared. */
  static async open(url) {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    const session = await ort.InferenceSession.create(bytes);
    return new ExplainedNetwork(session, metadataOf(bytes));
  }

  constructor(session, metadata) {
    this.session = session;
    this.metadata = metadata;
    this.labels = JSON.parse(metadata.labels);
    this.takesClass = session.inputNames.includes("class");
    const [channels, height, width] = JSON.parse(metadata.image_size);
    if (channels !== 3) throw new Error(`expected a network of colour images, got ${channels} channels`);
    Object.assign(this, { height, width });
  }

  /** Return a bitmap resized and cropped at its centre as the network's images are, as ImageData. */
  prepared(bitmap) {
    const { resize } = JSON.parse(this.metadata.preprocessing) ?? {};
    const scale = Number.isInteger(resize)
      ? Math.min(bitmap.width, bitmap.height) / resize
      : Math.min(bitmap.width / this.width, bitmap.height / this.height);
    const [width, height] = [this.width * scale, this.height * scale];
    const context = new OffscreenCanvas(this.width, this.height).getContext("2d");
    context.imageSmoothingQuality = "high";
    const corner = [(bitmap.width - width) / 2, (bitmap.height - height) / 2];
    context.drawImage(bitmap, ...corner, width, height, 0, 0, this.width, this.height);
    return context.getImageData(0, 0, this.width, this.height);
  }

  /** Return the map (height · width numbers) of a class, −1 for the predicted one, and its output. */
  async explain(image, classIndex = -1) {
    const places = this.height * this.width;
    const pixels = new Float32Array(3 * places);
    for (let i = 0; i < places; i++)
      for (let c = 0; c < 3; c++) pixels[c * places + i] = image.data[4 * i + c] / 255;
    const inputs = { images: new ort.Tensor("float32", pixels, [1, 3, this.height, this.width]) };
    if (this.takesClass) inputs.class = new ort.Tensor("int64", [BigInt(classIndex)], [1]);
    const results = await this.session.run(inputs);
    const explained = Number(results.target.data[0]);
    return {
      class: explained,
      output: results.outputs.data[explained],
      outputs: results.outputs.data,
      map: results.map.data.slice(0, places),
      completenessError: results.completeness_error.data[0],
    };
  }

  /** Draw an image on a canvas and, given a map, its colours over the image in grey. */
  draw(canvas, image, map) {
    Object.assign(canvas, { width: this.width, height: this.height });
    const drawn = new ImageData(new Uint8ClampedArray(image.data), this.width, this.height);
    const largest = map ? map.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-30) : 1;
    for (let i = 0; map && i < map.length; i++) {
      const [red, green, blue] = image.data.subarray(4 * i, 4 * i + 3);
      const grey = 0.3 * red + 0.6 * green + 0.1 * blue;
      const strength = 0.75 * Math.abs(map[i] / largest);
      const colour = map[i] > 0 ? [214, 30, 40] : [30, 80, 214];
      colour.forEach((tone, c) => (drawn.data[4 * i + c] = grey + strength * (tone - grey)));
    }
    canvas.getContext("2d").putImageData(drawn, 0, 0);
  }
}

/** Return what an ONNX file says of itself: field 14 of its message, pairs of texts. */
function metadataOf(bytes) {
  const text = new TextDecoder();
  const pairs = fieldsOf(bytes).filter(([number]) => number === 14);
  return Object.fromEntries(
    pairs.map(([, pair]) => fieldsOf(pair).map(([, content]) => text.decode(content))),
  );
}

/** Return the numbers and bytes of a message's fields that have a length (protocol buffers). */
function fieldsOf(bytes) {
  const fields = [];
  let at = 0;
  const integer = () => {
    let value = 0;
    for (let weight = 1; ; weight *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * weight;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = integer();
    const kind = key % 8;
    if (kind === 0) integer();
    else if (kind === 2) {
      const length = integer();
      fields.push([(key - kind) / 8, bytes.subarray(at, (at += length))]);
    } else throw new Error("the file is no ONNX file");
  }
  return fields;
}
