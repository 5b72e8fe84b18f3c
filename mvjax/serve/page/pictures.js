/** From a file that a person gives to the image that is sent: upright, not too large, in a format servers read. */

const MOST_SIDE = 1024; // pixels; models see 224 to 448
const MOST_BYTES = 2e6; // of a file that is sent as it is
const AS_IT_IS = ["image/png", "image/jpeg", "image/webp"];

/** Returns {bytes, type, url, width, height}; an Error says what is wrong. The caller revokes `url`. */
export async function read(file) {
  if (!file.type.startsWith("image/")) throw new Error(`${file.name || "This file"} is not an image.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Error(`This browser cannot read ${file.name || "the image"} (${file.type}): try a PNG or a JPEG.`);
  }
  const { width, height } = bitmap;
  const small = Math.max(width, height) <= MOST_SIDE && file.size <= MOST_BYTES;
  const sent = small && AS_IT_IS.includes(file.type) ? file : await reduced(bitmap);
  bitmap.close();
  return { bytes: await sent.arrayBuffer(), type: sent.type, url: URL.createObjectURL(sent), width, height };
}

/** The first image of a paste or a drop, or null. */
export function among(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}

function reduced(bitmap) {
  const scale = Math.min(1, MOST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(scale * bitmap.width));
  canvas.height = Math.max(1, Math.round(scale * bitmap.height));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // under transparent parts, as the server has it
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The image cannot be reduced."))), "image/jpeg", 0.92),
  );
}
