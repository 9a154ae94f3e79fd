// Where a model's files come from: the demo beside the page, files that the user chose, or the hub. Owns what is stored in the
// browser. Files are { name, blob }; nothing is ever sent anywhere.

const NEEDED = /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json$|^merges\.txt$|^vocab\.txt$|^model(-\d+-of-\d+)?\.safetensors$|^model\.safetensors\.index\.json$/;

/** The most bytes of weights on the CPU. WebAssembly has 4 GB, the CPU keeps each weight as the file stores it and packed, and the rest is
 *  for runs. On a GPU a weight leaves WebAssembly once it is uploaded, so the GPU's memory is the limit, of which a page is not told. */
const MOST_ON_CPU = 1.8e9;
/** WebAssembly cannot address a file beyond 4 GB. */
const MOST_IN_FILE = 2 ** 32 - 1;
let onGpu = true;

/** Says whether models will run on a GPU. */
export const runsOnGpu = (is) => (onGpu = is);

async function fetched(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(`${url} does not answer (${error.message}); check the connection`);
  }
  if (!response.ok) {
    const why = { 401: "it does not exist, or it is private or gated", 403: "access is refused", 404: "there is no such file" }[response.status];
    throw new Error(`${url} answers ${response.status}${why ? `: ${why}` : ""}`);
  }
  return response;
}

/** The demo model, which is published beside the page. */
export async function demo() {
  const names = ["config.json", "model.safetensors", "tokenizer.json"];
  return Promise.all(names.map(async (name) => ({ name, blob: await (await fetched(new URL(`demo/${name}`, import.meta.url))).blob() })));
}

/** The checkpoint among files that were chosen. A browser lists the files of subfolders too, such as those of other checkpoints: the
 *  config.json that lies highest says which folder is meant, and files of other folders are left out. */
export function chosen(list) {
  // Files that were chosen by themselves have no path.
  const foldersOf = (file) => (file.webkitRelativePath || file.name).split("/").slice(0, -1);
  const configs = [...list].filter((file) => file.name === "config.json").map(foldersOf);
  if (!configs.length) throw new Error("there is no config.json among these files; choose a checkpoint's folder, or all of its files");
  const depth = Math.min(...configs.map((folders) => folders.length)), highest = configs.filter((folders) => folders.length === depth);
  if (depth > 0 && highest.length > 1) throw new Error(`there are ${highest.length} checkpoints in this folder, such as ${highest.slice(0, 3).map((folders) => folders.join("/")).join(", ")}; choose the folder of one of them`);
  const [folders] = highest, folder = folders.join("/");
  const files = [...list].filter((file) => NEEDED.test(file.name) && foldersOf(file).join("/") === folder).map((file) => ({ name: file.name, blob: file }));
  const twice = files.find(({ name }, i) => files.findIndex((file) => file.name === name) < i);
  if (twice) throw new Error(`two of these files are named ${twice.name}; choose the files of one checkpoint`);
  fits(files);
  return { name: folders.at(-1) ?? "files", files };
}

/** Throws an Error if a page cannot hold these files. */
export function fits(files) {
  const sizes = files.map(({ blob, size }) => blob?.size ?? size), bytes = sizes.reduce((sum, size) => sum + size, 0);
  if (!onGpu && bytes > MOST_ON_CPU) throw new Error(`the model has ${megabytes(bytes)}, and a page can hold ${megabytes(MOST_ON_CPU)} on the CPU, which needs twice the weights' size of the 4 GB that WebAssembly has; the device WebGPU holds them in the GPU's memory, and the command line has no such limit`);
  const largest = Math.max(...sizes);
  if (largest > MOST_IN_FILE) throw new Error(`a file of the model has ${megabytes(largest)}, and a page reads files of ${megabytes(MOST_IN_FILE)} at most; save it in several files, or use the command line, which has no such limit`);
}

/** What a model of this many bytes needs, in words. */
export const needs = (bytes) => (onGpu ? `${megabytes(bytes)} of the GPU's memory` : `${megabytes(2.2 * bytes)} of memory`);

export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

// The hub.

/** Another hub may be named in the address, as HF_ENDPOINT names it for programs: ?hub=/mirror. */
const HUB = new URLSearchParams(location.search).get("hub") ?? "https://huggingface.co";
const SHORT = { gpt2: "openai-community/gpt2", "gpt2-medium": "openai-community/gpt2-medium", "gpt2-large": "openai-community/gpt2-large", distilgpt2: "distilbert/distilgpt2" };
/** Files are stored in pieces of this size, so that a download that was cut off goes on where it was. */
const PIECE = Number(new URLSearchParams(location.search).get("piece")) || 8 << 20;

/** What the hub has under a name: the files that are needed, their sizes, the commit. */
export async function listed(given, signal) {
  const [, repo, revision = "main"] = /^([\w.-]+(?:\/[\w.-]+)?)(?:@([\w./-]+))?$/.exec(given.trim()) ?? [];
  if (!repo) throw new Error(`${JSON.stringify(given)} is no name of a model; it is owner/name, or owner/name@revision`);
  const name = SHORT[repo] ?? repo;
  const about = await (await fetched(`${HUB}/api/models/${name}/revision/${encodeURIComponent(revision)}?blobs=true`, { signal })).json();
  let files = about.siblings.map(({ rfilename, size }) => ({ name: rfilename, size })).filter((file) => NEEDED.test(file.name));
  const has = (name) => files.some((file) => file.name === name);
  if (!has("config.json")) throw new Error(`${name} has no config.json, so it is no model for transformers`);
  if (has("model.safetensors")) files = files.filter((file) => !/^model-\d|index\.json$/.test(file.name));
  else if (!has("model.safetensors.index.json")) throw new Error(`${name} has no safetensors, only other formats; convert it once, or choose another`);
  if (has("tokenizer.json")) files = files.filter((file) => !["vocab.json", "merges.txt", "vocab.txt"].includes(file.name));
  fits(files);
  const url = (file) => `${HUB}/${name}/resolve/${about.sha}/${file}`;
  const config = await (await fetched(url("config.json"), { signal })).json();
  return { name, given: given.trim(), sha: about.sha, files, url, config, bytes: files.reduce((sum, { size }) => sum + size, 0) };
}

/** The browser's storage for this page. */
async function storage() {
  try {
    return await navigator.storage.getDirectory();
  } catch (error) {
    throw new Error(`This browser does not let the page store files (${error.message}); open the page in a window that is not private, or download the model yourself and choose its folder`);
  }
}

async function folderOf(...path) {
  let folder = await storage();
  for (const name of path) folder = await folder.getDirectoryHandle(encodeURIComponent(name), { create: true });
  return folder;
}

/** Stores a file, and returns it as it is stored. */
async function stored(folder, name, blob) {
  try {
    const handle = await folder.getFileHandle(name, { create: true }), out = await handle.createWritable();
    await out.write(blob);
    await out.close();
    return await handle.getFile();
  } catch (error) {
    if (error.name !== "QuotaExceededError") throw error;
    throw new Error("There is not enough storage for this model; remove stored models, or choose a smaller one");
  }
}

/** Downloads what is not stored yet; `tell` hears bytes that are here, of how many. */
export async function downloaded(model, tell, signal) {
  const root = await folderOf("models", model.name, model.sha);
  let done = 0;
  const files = [];
  for (const { name, size } of model.files) {
    const folder = await root.getDirectoryHandle(encodeURIComponent(name), { create: true });
    const pieces = [];
    for (let start = 0; start < Math.max(size, 1); start += PIECE) {
      signal?.throwIfAborted();
      const length = Math.min(PIECE, size - start), file = `${start}`;
      let piece = await folder.getFileHandle(file).then((handle) => handle.getFile(), () => null);
      if (piece?.size !== length) {
        const range = size > PIECE ? { Range: `bytes=${start}-${start + length - 1}` } : {};
        const response = await fetched(model.url(name), { headers: range, signal });
        let blob = await response.blob();
        if (size > PIECE && response.status === 200) blob = blob.slice(start, start + length);
        if (blob.size !== length) throw new Error(`${name} came with ${blob.size} bytes in place of ${length}; try again`);
        piece = await stored(folder, file, blob);
      }
      pieces.push(piece);
      tell((done += length), model.bytes);
    }
    files.push({ name, blob: new Blob(pieces) });
  }
  return files;
}

/** Removes every stored model. */
export async function forgetAll() {
  const root = await storage();
  try {
    await root.removeEntry("models", { recursive: true });
  } catch (error) {
    // Nothing was stored.
    if (error.name === "NotFoundError") return;
    throw new Error(`The stored models cannot be removed (${error.message}); close other windows with this page, and try again`);
  }
}
