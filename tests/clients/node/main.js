// Asks a mesh what every client of tests/clients asks, and prints what it was told as JSON.
const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const { call, connect, credentials, explain, hotRead, load, readRange, value, watch, write } = require('./client');

const [vectors, unsteady, protos] = process.argv.slice(2);
const { OPENMANAGER_GATEWAY: address, OPENMANAGER_TLS_CA: ca, OPENMANAGER_TOKEN: key } = process.env;
const own = 'client-node';
const definition = load(protos);

function bits(number) {
  const bytes = Buffer.alloc(8);
  bytes.writeDoubleBE(number);
  return bytes.toString('hex');
}

const code = (error) => grpc.status[error.code];

async function refused(work) {
  try {
    await work;
  } catch (error) {
    return error;
  }
  throw new Error('was not refused');
}

async function health() {
  const proto = path.join(path.dirname(require.resolve('grpc-health-check/package.json')), 'proto/health/v1/health.proto');
  const { Health } = grpc.loadPackageDefinition(loader.loadSync(proto, { enums: String })).grpc.health.v1;
  return (await call(new Health(address, credentials(ca, key)), 'check', {})).status;
}

async function list(gateway) {
  const ids = [];
  let pageToken = '';
  do {
    const page = await call(gateway, 'listServers', { pageSize: 2, pageToken, filter: 'role = vector' });
    ids.push(...page.servers.map((server) => server.id));
    pageToken = page.nextPageToken;
  } while (pageToken);
  return ids;
}

async function writeAndRead({ gateway, timeseries }) {
  const end = BigInt(Date.now()) * 1_000_000n;
  const frame = {
    timeUnixNanos: [end - 2_000_000_000n, end - 1_000_000_000n].map(String),
    servers: [own],
    metrics: ['cpu_usage', 'memory_usage'],
    values: [0.1, Infinity, 1 / 3, NaN],
    serverInfos: [{ id: own, role: 'client', labels: { language: 'node' } }],
  };
  const ack = await write(gateway, frame);
  const range = {};
  for (const [metric, { times, values }] of await readRange(timeseries, own, end - 60_000_000_000n, end)) {
    range[metric] = { times, values: values.map(bits) };
  }
  const rejections = ack.rejections.map(({ server, metric, reason, sampleCount }) => [server, metric, reason, sampleCount]);
  const accepted = Number(ack.acceptedSampleCount);
  return [{ server: own, times: frame.timeUnixNanos, accepted, rejections }, range];
}

async function watched(gateway) {
  const kinds = [];
  const ended = await watch(gateway, 30, (reply, stream) => {
    kinds.push(reply.kind);
    if (kinds.length === 2) stream.cancel();
  });
  return { kinds, ended: code(ended) };
}

function checkVectors() {
  const { deserialize, serialize } = definition['openmanager.api.frame.v1.Frame'];
  return JSON.parse(fs.readFileSync(vectors)).map(({ name, wire }) => {
    const frame = deserialize(Buffer.from(wire, 'hex'));
    const { timeUnixNanos: times, servers, metrics } = frame;
    const values = times.flatMap((_, t) => servers.flatMap((_, s) => metrics.map((_, m) => bits(value(frame, t, s, m)))));
    return { name, times, servers, metrics, values, encoded: serialize(frame).toString('hex') };
  });
}

async function main() {
  const mesh = connect(definition, address, credentials(ca, key));
  const { gateway } = mesh;
  const told = { vectors: checkVectors(), health: await health(), servers: await list(gateway) };

  const board = await call(gateway, 'getStorageStatus', {});
  told.services = Object.fromEntries(board.services.map(({ service, state }) => [service, state]));
  told.hot = Object.fromEntries(Object.entries(await hotRead(gateway, 'vector-1')).map(([name, number]) => [name, bits(number)]));
  [told.written, told.range] = await writeAndRead(mesh);
  told.watch = await watched(gateway);
  told.deadline = code(await watch(gateway, 0.3, () => {}));

  const short = { timeUnixNanos: [String(BigInt(Date.now()) * 1_000_000n)], servers: [own], metrics: ['cpu_usage'] };
  let error = await refused(write(gateway, short));
  let why = explain(error);
  told.refused = { code: code(error), reason: why.ErrorInfo.reason, field: why.BadRequest.violations[0].field };
  error = await refused(hotRead(gateway, 'nobody'));
  why = explain(error);
  told.not_found = { code: code(error), type: why.ResourceInfo.resourceType, name: why.ResourceInfo.resourceName };
  error = await refused(hotRead(connect(definition, address, credentials(ca, 'omk_wrong')).gateway, 'vector-1'));
  told.stranger = { code: code(error), reason: explain(error).ErrorInfo.reason };

  const plain = connect(definition, unsteady, grpc.credentials.createInsecure());
  told.retried = Object.keys(await hotRead(plain.gateway, 'vector-1')).length;
  console.log(JSON.stringify(told));
  process.exit(0); // channels would keep it alive
}

main();
