package fleet;

import com.google.gson.Gson;
import com.google.gson.JsonObject;
import com.google.protobuf.Any;
import com.google.rpc.ResourceInfo;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import openmanager.api.frame.v1.FrameOuterClass.Frame;
import openmanager.api.frame.v1.FrameOuterClass.ServerInfo;
import openmanager.api.frame.v1.FrameOuterClass.WriteAck;
import openmanager.api.gateway.v1.Gateway.GetStorageStatusRequest;
import openmanager.api.gateway.v1.Gateway.ListServersRequest;
import openmanager.api.gateway.v1.Gateway.ListServersResponse;
import openmanager.api.gateway.v1.GatewayServiceGrpc.GatewayServiceBlockingStub;
import openmanager.api.timeseries.v1.TimeseriesServiceGrpc;
import openmanager.api.timeseries.v1.TimeseriesServiceGrpc.TimeseriesServiceBlockingStub;

/** Asks a mesh what every client of tests/clients asks, and prints what it was told as JSON. */
final class Main {
  private static final String OWN = "client-java";
  private static final Gson GSON = new Gson();

  public static void main(String[] args) throws Exception {
    String address = System.getenv("OPENMANAGER_GATEWAY");
    String ca = System.getenv("OPENMANAGER_TLS_CA");
    String key = System.getenv("OPENMANAGER_TOKEN");
    ManagedChannel channel = Client.connect(address, ca);
    ManagedChannel unsteady = Client.connectPlain(args[1]);
    GatewayServiceBlockingStub gateway = Client.gateway(channel, key);
    TimeseriesServiceBlockingStub timeseries = TimeseriesServiceGrpc.newBlockingStub(channel)
        .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(Client.bearer(key)));
    Map<String, Object> told = new LinkedHashMap<>();

    told.put("vectors", vectors(Path.of(args[0])));
    HealthCheckRequest anybody = HealthCheckRequest.getDefaultInstance();
    told.put("health", HealthGrpc.newBlockingStub(channel).check(anybody).getStatus().name());

    Map<String, String> states = new TreeMap<>();
    gateway.getStorageStatus(GetStorageStatusRequest.getDefaultInstance()).getServicesList()
        .forEach(service -> states.put(service.getService(), service.getState().name()));
    told.put("services", states);

    told.put("servers", list(gateway));
    Map<String, String> hot = new TreeMap<>();
    Client.hotRead(gateway, "vector-1").forEach((metric, value) -> hot.put(metric, bits(value)));
    told.put("hot", hot);
    writeAndRead(gateway, timeseries, told);
    told.put("watch", watched(gateway));
    told.put("deadline", code(refused(
        () -> Client.watch(gateway.withDeadlineAfter(300, TimeUnit.MILLISECONDS), reply -> {}))));

    Frame without = Frame.newBuilder()
        .addTimeUnixNanos(nanos(Instant.now())).addServers(OWN).addMetrics("cpu_usage").build();
    StatusRuntimeException error = refused(() -> Client.write(gateway, without));
    List<String> why = Client.explain(error);
    told.put("refused", Map.of("code", code(error), "reason", why.get(0), "field", why.get(1)));

    error = refused(() -> Client.hotRead(gateway, "nobody"));
    for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(ResourceInfo.class)) {
        ResourceInfo missing = detail.unpack(ResourceInfo.class);
        told.put("not_found", Map.of(
            "code", code(error), "type", missing.getResourceType(), "name", missing.getResourceName()));
      }
    }

    error = refused(() -> Client.hotRead(Client.gateway(channel, "omk_wrong"), "vector-1"));
    told.put("stranger", Map.of("code", code(error), "reason", Client.explain(error).get(0)));
    told.put("retried", Client.hotRead(Client.gateway(unsteady, key), "vector-1").size());

    System.out.println(GSON.toJson(told));
    unsteady.shutdownNow();
    channel.shutdownNow();
  }

  private static List<String> list(GatewayServiceBlockingStub gateway) {
    List<String> ids = new ArrayList<>();
    String token = "";
    do {
      ListServersResponse page = gateway.listServers(ListServersRequest.newBuilder()
          .setPageSize(2).setPageToken(token).setFilter("role = vector").build());
      page.getServersList().forEach(server -> ids.add(server.getId()));
      token = page.getNextPageToken();
    } while (!token.isEmpty());
    return ids;
  }

  private static void writeAndRead(
      GatewayServiceBlockingStub gateway, TimeseriesServiceBlockingStub timeseries, Map<String, Object> told) {
    Instant end = Instant.now().truncatedTo(ChronoUnit.MILLIS);
    Frame frame = Frame.newBuilder()
        .addTimeUnixNanos(nanos(end.minusSeconds(2))).addTimeUnixNanos(nanos(end.minusSeconds(1)))
        .addServers(OWN)
        .addMetrics("cpu_usage").addMetrics("memory_usage")
        .addValues(0.1).addValues(Double.POSITIVE_INFINITY).addValues(1.0 / 3.0).addValues(Double.NaN)
        .addServerInfos(ServerInfo.newBuilder().setId(OWN).setRole("client").putLabels("language", "java"))
        .build();
    WriteAck ack = Client.write(gateway, frame);
    List<List<String>> rejections = ack.getRejectionsList().stream()
        .map(each -> List.of(
            each.getServer(), each.getMetric(), each.getReason(), Long.toString(each.getSampleCount())))
        .toList();
    told.put("written", Map.of(
        "server", OWN,
        "times", decimals(frame.getTimeUnixNanosList()),
        "accepted", ack.getAcceptedSampleCount(),
        "rejections", rejections));
    Map<String, Object> range = new TreeMap<>();
    Client.readRange(timeseries, OWN, end.minusSeconds(60), end).forEach((metric, series) -> range.put(
        metric,
        Map.of(
            "times", decimals(series.getTimeUnixNanosList()),
            "values", series.getValuesList().stream().map(Main::bits).toList())));
    told.put("range", range);
  }

  private static Map<String, Object> watched(GatewayServiceBlockingStub gateway) {
    List<String> kinds = new ArrayList<>();
    Context.CancellableContext context = Context.current().withCancellation();
    StatusRuntimeException ended = refused(() -> context.run(
        () -> Client.watch(gateway.withDeadline(Deadline.after(30, TimeUnit.SECONDS)), reply -> {
          kinds.add(reply.getKind().name());
          if (kinds.size() == 2) {
            context.cancel(null);
          }
        })));
    return Map.of("kinds", kinds, "ended", code(ended));
  }

  private static List<Object> vectors(Path file) throws Exception {
    List<Object> told = new ArrayList<>();
    for (JsonObject vector : GSON.fromJson(Files.readString(file), JsonObject[].class)) {
      Frame frame = Frame.parseFrom(HexFormat.of().parseHex(vector.get("wire").getAsString()));
      List<String> values = new ArrayList<>();
      for (int t = 0; t < frame.getTimeUnixNanosCount(); t++) {
        for (int s = 0; s < frame.getServersCount(); s++) {
          for (int m = 0; m < frame.getMetricsCount(); m++) {
            values.add(bits(Client.value(frame, t, s, m)));
          }
        }
      }
      told.add(Map.of(
          "name", vector.get("name").getAsString(),
          "times", decimals(frame.getTimeUnixNanosList()),
          "servers", List.copyOf(frame.getServersList()),
          "metrics", List.copyOf(frame.getMetricsList()),
          "values", values,
          "encoded", HexFormat.of().formatHex(frame.toByteArray())));
    }
    return told;
  }

  private static StatusRuntimeException refused(Runnable work) {
    try {
      work.run();
    } catch (StatusRuntimeException error) {
      return error;
    }
    throw new AssertionError("was not refused");
  }

  private static String code(StatusRuntimeException error) {
    return error.getStatus().getCode().name();
  }

  private static long nanos(Instant time) {
    return time.getEpochSecond() * 1_000_000_000L + time.getNano();
  }

  private static String bits(double value) {
    return String.format("%016x", Double.doubleToRawLongBits(value));
  }

  private static List<String> decimals(List<Long> times) {
    return times.stream().map(String::valueOf).toList();
  }

  private Main() {}
}
