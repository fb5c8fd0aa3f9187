const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

// Times are nanoseconds: too large for a number of JavaScript, so they are strings, and BigInt where they are computed with.
const options = { longs: String, enums: String, defaults: true, oneofs: true };

function load(protos) {
  const files = ['gateway/v1/gateway.proto', 'timeseries/v1/timeseries.proto'].map((file) => `openmanager/api/${file}`);
  return loader.loadSync(files, { ...options, includeDirs: [protos] });
}

const retries = {
  methodConfig: [{
    name: [{ service: 'openmanager.api.gateway.v1.GatewayService' }],
    retryPolicy: {
      maxAttempts: 4, initialBackoff: '0.1s', maxBackoff: '1s', backoffMultiplier: 2,
      retryableStatusCodes: ['UNAVAILABLE'],
    },
  }],
};

const channel = {
  'grpc.service_config': JSON.stringify(retries),
  'grpc.default_compression_algorithm': grpc.compressionAlgorithms.gzip,
};

function credentials(ca, key) {
  const withKey = grpc.credentials.createFromMetadataGenerator((_, done) => {
    const metadata = new grpc.Metadata();
    metadata.set('authorization', `Bearer ${key}`);
    done(null, metadata);
  });
  return grpc.credentials.combineChannelCredentials(grpc.credentials.createSsl(fs.readFileSync(ca)), withKey);
}

function connect(definition, address, shown) {
  const { gateway, timeseries } = grpc.loadPackageDefinition(definition).openmanager.api;
  return {
    gateway: new gateway.v1.GatewayService(address, shown, channel),
    timeseries: new timeseries.v1.TimeseriesService(address, shown, channel),
  };
}

function call(client, method, request, seconds = 10) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + seconds * 1000;
    client[method](request, { deadline }, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

async function hotRead(gateway, id) {
  const { server } = await call(gateway, 'getServer', { id, view: 'VIEW_FULL' });
  const newest = server.metrics.map((metric, at) => [metric, server.values[at]]);
  return Object.fromEntries(newest.filter(([, value]) => !Number.isNaN(value)));
}

async function write(gateway, frame) {
  const { ack } = await call(gateway, 'writeFrame', { frame });
  return ack; // on disk; what was refused of it is in rejections
}

/** Return the sample of time t, server s and metric m. */
function value(frame, t, s, m) {
  return frame.values[(t * frame.servers.length + s) * frame.metrics.length + m];
}

function timestamp(nanos) {
  return { seconds: String(nanos / 1_000_000_000n), nanos: Number(nanos % 1_000_000_000n) };
}

async function readRange(timeseries, server, start, end) {
  const request = { selector: { servers: [server] }, startTime: timestamp(start), endTime: timestamp(end) };
  const found = new Map();
  for await (const { series } of timeseries.queryRange(request, { deadline: Date.now() + 30_000 })) {
    if (!series) continue; // the header comes first
    const known = found.get(series.metric) ?? { times: [], values: [] };
    // A long series comes in several replies.
    found.set(series.metric, {
      times: known.times.concat(series.timeUnixNanos),
      values: known.values.concat(series.values),
    });
  }
  return found;
}

function watch(gateway, seconds, seen) {
  const stream = gateway.watchServers({}, { deadline: Date.now() + seconds * 1000 });
  return new Promise((resolve) => {
    stream.on('data', (reply) => seen(reply, stream)); // its resumeToken, in the next request, goes on after it
    stream.on('error', resolve); // of code CANCELLED after stream.cancel(), DEADLINE_EXCEEDED when its time is over
    stream.on('end', resolve);
  });
}

const { root } = protobuf.parse(`
  syntax = "proto3"; package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; }
  message BadRequest { message Violation { string field = 1; string description = 2; } repeated Violation violations = 1; }
  message ResourceInfo { string resource_type = 1; string resource_name = 2; }
`);

/** Return the details of a refusal by name: ErrorInfo always, BadRequest with the field at fault, ResourceInfo. */
function explain(error) {
  const [packed] = error.metadata?.get('grpc-status-details-bin') ?? [];
  const details = packed ? root.lookupType('google.rpc.Status').decode(packed).details : [];
  const named = details.map((any) => [any.typeUrl.split('.').pop(), any]);
  const known = named.filter(([name]) => root.lookup(`google.rpc.${name}`));
  return Object.fromEntries(known.map(([name, any]) => [name, root.lookupType(`google.rpc.${name}`).decode(any.value)]));
}

module.exports = { call, connect, credentials, explain, hotRead, load, readRange, value, watch, write };
