package fleet;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Timestamp;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.time.Instant;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import openmanager.api.frame.v1.FrameOuterClass.Frame;
import openmanager.api.frame.v1.FrameOuterClass.Selector;
import openmanager.api.frame.v1.FrameOuterClass.WriteAck;
import openmanager.api.gateway.v1.Gateway.GetServerRequest;
import openmanager.api.gateway.v1.Gateway.WatchServersRequest;
import openmanager.api.gateway.v1.Gateway.WatchServersResponse;
import openmanager.api.gateway.v1.Gateway.WriteFrameRequest;
import openmanager.api.gateway.v1.GatewayServiceGrpc;
import openmanager.api.gateway.v1.GatewayServiceGrpc.GatewayServiceBlockingStub;
import openmanager.api.server.v1.ServerOuterClass.Server;
import openmanager.api.server.v1.ServerOuterClass.View;
import openmanager.api.timeseries.v1.Timeseries.QueryRangeRequest;
import openmanager.api.timeseries.v1.Timeseries.QueryRangeResponse;
import openmanager.api.timeseries.v1.Timeseries.Series;
import openmanager.api.timeseries.v1.TimeseriesServiceGrpc.TimeseriesServiceBlockingStub;

final class Client {
  // Numbers of a service config are doubles.
  static final Map<String, ?> RETRIES =
      Map.of("methodConfig", List.of(Map.of(
          "name", List.of(Map.of("service", "openmanager.api.gateway.v1.GatewayService")),
          "retryPolicy", Map.of(
              "maxAttempts", 4.0, "initialBackoff", "0.1s", "maxBackoff", "1s", "backoffMultiplier", 2.0,
              "retryableStatusCodes", List.of("UNAVAILABLE")))));

  static ManagedChannel connect(String address, String ca) throws IOException {
    ChannelCredentials credentials = TlsChannelCredentials.newBuilder().trustManager(new File(ca)).build();
    return Grpc.newChannelBuilder(address, credentials).defaultServiceConfig(RETRIES).build();
  }

  static ManagedChannel connectPlain(String address) {
    return Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).defaultServiceConfig(RETRIES).build();
  }

  static GatewayServiceBlockingStub gateway(ManagedChannel channel, String key) {
    return GatewayServiceGrpc.newBlockingStub(channel)
        .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(bearer(key)))
        .withCompression("gzip");
  }

  static Metadata bearer(String key) {
    Metadata headers = new Metadata();
    headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + key);
    return headers;
  }

  static Map<String, Double> hotRead(GatewayServiceBlockingStub gateway, String id) {
    GetServerRequest request = GetServerRequest.newBuilder().setId(id).setView(View.VIEW_FULL).build();
    Server server = gateway.withDeadlineAfter(10, TimeUnit.SECONDS).getServer(request).getServer();
    Map<String, Double> newest = new HashMap<>();
    for (int i = 0; i < server.getMetricsCount(); i++) {
      if (!Double.isNaN(server.getValues(i))) {
        newest.put(server.getMetrics(i), server.getValues(i));
      }
    }
    return newest;
  }

  static WriteAck write(GatewayServiceBlockingStub gateway, Frame frame) {
    WriteFrameRequest request = WriteFrameRequest.newBuilder().setFrame(frame).build();
    return gateway.withDeadlineAfter(10, TimeUnit.SECONDS).writeFrame(request).getAck();
  }

  /** Returns the sample of time t, server s and metric m. */
  static double value(Frame frame, int t, int s, int m) {
    return frame.getValues((t * frame.getServersCount() + s) * frame.getMetricsCount() + m);
  }

  static Map<String, Series> readRange(
      TimeseriesServiceBlockingStub timeseries, String server, Instant start, Instant end) {
    QueryRangeRequest request = QueryRangeRequest.newBuilder()
        .setSelector(Selector.newBuilder().addServers(server))
        .setStartTime(timestamp(start))
        .setEndTime(timestamp(end))
        .build();
    Map<String, Series.Builder> parts = new HashMap<>();
    Iterator<QueryRangeResponse> replies = timeseries.withDeadlineAfter(30, TimeUnit.SECONDS).queryRange(request);
    while (replies.hasNext()) {
      QueryRangeResponse reply = replies.next();
      if (reply.hasSeries()) { // the header comes first; a long series comes in several replies
        Series part = reply.getSeries();
        parts.computeIfAbsent(part.getMetric(), metric -> Series.newBuilder().setMetric(metric))
            .addAllTimeUnixNanos(part.getTimeUnixNanosList())
            .addAllValues(part.getValuesList());
      }
    }
    Map<String, Series> found = new HashMap<>();
    parts.forEach((metric, series) -> found.put(metric, series.build()));
    return found;
  }

  static Timestamp timestamp(Instant time) {
    return Timestamp.newBuilder().setSeconds(time.getEpochSecond()).setNanos(time.getNano()).build();
  }

  /** Tells what is seen until the context is cancelled or the deadline has passed, which is a StatusRuntimeException. */
  static void watch(GatewayServiceBlockingStub gateway, Consumer<WatchServersResponse> seen) {
    // The token of the last reply, in the next request, goes on after it.
    gateway.watchServers(WatchServersRequest.getDefaultInstance()).forEachRemaining(seen);
  }

  /** Returns the reason of a refusal, and the field of the request that it is about or "". */
  static List<String> explain(StatusRuntimeException error) throws InvalidProtocolBufferException {
    String reason = "";
    String field = "";
    for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        reason = detail.unpack(ErrorInfo.class).getReason();
      } else if (detail.is(BadRequest.class)) {
        field = detail.unpack(BadRequest.class).getFieldViolations(0).getField();
      }
    }
    return List.of(reason, field);
  }

  private Client() {}
}
