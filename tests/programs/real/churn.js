// Makes garbage, hashes and compresses in the thread pool, waits for timers, works in a worker thread; prints a running
// digest of all of it.
// usage: node churn.js ROUNDS
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const util = require('util');
const zlib = require('zlib');
const { Worker, isMainThread, parentPort } = require('worker_threads');

const deflate = util.promisify(zlib.deflate);
const pbkdf2 = util.promisify(crypto.pbkdf2);

function words(seed, count) {
  const found = new Map();
  let state = seed >>> 0;
  for (let i = 0; i < count; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const word = (state >>> 12).toString(36);
    found.set(word, { word, count: (found.get(word)?.count ?? 0) + 1, at: [i, state % 97] });
  }
  return JSON.stringify([...found.values()].sort((a, b) => (a.word < b.word ? -1 : 1)));
}

const digest_of = (text) => crypto.createHash('sha256').update(text).digest('hex');

async function main(rounds) {
  const worker = new Worker(__filename);
  const ask = (seed) => new Promise((done) => { worker.once('message', done); worker.postMessage(seed); });
  const log = await fs.promises.open('rounds.log', 'a');
  let digest = '';
  for (let round = 0; round < rounds; round++) {
    const text = words(round, 9000);
    const parts = [deflate(text), pbkdf2(text, 'salt', 400, 32, 'sha512'), ask(round + 7777)];
    parts.push(new Promise((done) => setTimeout(done, 3, `timer ${round}`)));
    const results = (await Promise.all(parts)).map((part) => digest_of(part));
    digest = digest_of(digest + results.join());
    await log.appendFile(`${round} ${digest}\n`);
    fs.writeSync(1, `${round} ${text.length} ${digest.slice(0, 16)}\n`);
  }
  await log.close();
  await worker.terminate();
  console.log('done', digest);
}

if (isMainThread) {
  main(Number(process.argv[2]));
} else {
  parentPort.on('message', (seed) => parentPort.postMessage(digest_of(words(seed, 4000))));
}
