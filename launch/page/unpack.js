// What report.py packed: base64 of gzip, in <script type="text/plain"> elements, which are let go once they are read.

function bytesOfBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

function unpacked(name) {
  const holder = at(`packed-${name}`);
  const packed = bytesOfBase64(holder.textContent);
  holder.remove();
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip")));
}

const LOGP_UNKNOWN = 65535, RATIO_UNKNOWN = 0, RATIO_ONE = 32768, UNITS = 1000; // as in report_traces.py

// The per-token numbers of a run, by the token's place in its streams; null where a number is not known.
class Streams {
  constructor(buffer) {
    this.bytes = new Uint8Array(buffer);
    this.length = this.bytes.length / 8;
  }

  // Bytes of equal rank stand together: the entry i has one in each of `size` stretches of this.length.
  #entry(first, size, i) {
    let value = 0;
    for (let rank = size - 1; rank >= 0; rank--) value = value * 256 + this.bytes[(first + rank) * this.length + i];
    return value;
  }

  token(i) { return this.#entry(0, 4, i); }

  logp(i) {
    const code = this.#entry(4, 2, i);
    return code === LOGP_UNKNOWN ? null : -code / UNITS;
  }

  ratio(i) {
    const code = this.#entry(6, 2, i);
    return code === RATIO_UNKNOWN ? null : Math.exp((code - RATIO_ONE) / UNITS);
  }
}
