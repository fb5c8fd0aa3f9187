// Asks a mesh what every client of tests/clients asks, and prints what it was told as JSON.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"fleet/openmanager/api/frame/v1"
	"fleet/openmanager/api/gateway/v1"
	"fleet/openmanager/api/timeseries/v1"
)

type object = map[string]any

const own = "client-go"

func main() {
	ctx := context.Background()
	address, ca := os.Getenv("OPENMANAGER_GATEWAY"), os.Getenv("OPENMANAGER_TLS_CA")
	connection := must(connect(address, ca, os.Getenv("OPENMANAGER_TOKEN")))
	defer connection.Close()
	gateway := gatewayv1.NewGatewayServiceClient(connection)
	told := object{"vectors": vectors(os.Args[1])}

	checked := must(health.NewHealthClient(connection).Check(ctx, &health.HealthCheckRequest{}))
	told["health"] = checked.Status.String()

	board := must(gateway.GetStorageStatus(ctx, &gatewayv1.GetStorageStatusRequest{}))
	states := object{}
	for _, service := range board.Services {
		states[service.Service] = service.State.String()
	}
	told["services"] = states

	servers, token := []string{}, ""
	for more := true; more; more = token != "" {
		page := must(gateway.ListServers(ctx, &gatewayv1.ListServersRequest{PageSize: 2, PageToken: token, Filter: "role = vector"}))
		for _, server := range page.Servers {
			servers = append(servers, server.Id)
		}
		token = page.NextPageToken
	}
	told["servers"] = servers

	hot := object{}
	for metric, value := range must(hotRead(ctx, gateway, "vector-1")) {
		hot[metric] = bits(value)
	}
	told["hot"] = hot

	told["written"], told["range"] = writeAndRead(ctx, gateway, timeseriesv1.NewTimeseriesServiceClient(connection))
	told["watch"] = watched(ctx, gateway)

	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	told["deadline"] = code(watch(short, gateway, func(*gatewayv1.WatchServersResponse) {}))

	_, err := write(ctx, gateway, &framev1.Frame{TimeUnixNanos: []int64{time.Now().UnixNano()}, Servers: []string{own}, Metrics: []string{"cpu_usage"}})
	reason, field := explain(err)
	told["refused"] = object{"code": code(err), "reason": reason, "field": field}

	_, err = hotRead(ctx, gateway, "nobody")
	for _, detail := range status.Convert(err).Details() {
		if resource, ok := detail.(*errdetails.ResourceInfo); ok {
			told["not_found"] = object{"code": code(err), "type": resource.ResourceType, "name": resource.ResourceName}
		}
	}

	stranger := must(connect(address, ca, "omk_wrong"))
	defer stranger.Close()
	_, err = hotRead(ctx, gatewayv1.NewGatewayServiceClient(stranger), "vector-1")
	reason, _ = explain(err)
	told["stranger"] = object{"code": code(err), "reason": reason}

	unsteady := must(connectPlain(os.Args[2]))
	defer unsteady.Close()
	told["retried"] = len(must(hotRead(ctx, gatewayv1.NewGatewayServiceClient(unsteady), "vector-1")))

	fmt.Println(string(must(json.Marshal(told))))
}

func writeAndRead(ctx context.Context, gateway gatewayv1.GatewayServiceClient, timeseries timeseriesv1.TimeseriesServiceClient) (object, object) {
	end := time.Now().Truncate(time.Millisecond)
	frame := &framev1.Frame{
		TimeUnixNanos: []int64{end.Add(-2 * time.Second).UnixNano(), end.Add(-time.Second).UnixNano()},
		Servers:       []string{own},
		Metrics:       []string{"cpu_usage", "memory_usage"},
		Values:        []float64{0.1, math.Inf(1), 1.0 / 3.0, math.NaN()},
		ServerInfos:   []*framev1.ServerInfo{{Id: own, Role: "client", Labels: map[string]string{"language": "go"}}},
	}
	ack := must(write(ctx, gateway, frame))
	rejections := [][]string{}
	for _, each := range ack.Rejections {
		rejections = append(rejections, []string{each.Server, each.Metric, each.Reason, strconv.FormatInt(each.SampleCount, 10)})
	}
	read := object{}
	for metric, series := range must(readRange(ctx, timeseries, own, end.Add(-time.Minute), end)) {
		read[metric] = object{"times": decimals(series.TimeUnixNanos), "values": allBits(series.Values)}
	}
	written := object{"server": own, "times": decimals(frame.TimeUnixNanos), "accepted": ack.AcceptedSampleCount, "rejections": rejections}
	return written, read
}

func watched(ctx context.Context, gateway gatewayv1.GatewayServiceClient) object {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	kinds := []string{}
	err := watch(ctx, gateway, func(reply *gatewayv1.WatchServersResponse) {
		kinds = append(kinds, reply.Kind.String())
		if len(kinds) == 2 {
			cancel()
		}
	})
	return object{"kinds": kinds, "ended": code(err)}
}

func vectors(path string) []object {
	var given []struct{ Name, Wire string }
	check(json.Unmarshal(must(os.ReadFile(path)), &given))
	told := []object{}
	for _, vector := range given {
		frame := &framev1.Frame{}
		check(proto.Unmarshal(must(hex.DecodeString(vector.Wire)), frame))
		values := []string{}
		for t := range frame.TimeUnixNanos {
			for s := range frame.Servers {
				for m := range frame.Metrics {
					values = append(values, bits(value(frame, t, s, m)))
				}
			}
		}
		encoded := must(proto.MarshalOptions{Deterministic: true}.Marshal(frame))
		told = append(told, object{"name": vector.Name, "times": decimals(frame.TimeUnixNanos), "servers": append([]string{}, frame.Servers...),
			"metrics": append([]string{}, frame.Metrics...), "values": values, "encoded": hex.EncodeToString(encoded)})
	}
	return told
}

func bits(value float64) string { return fmt.Sprintf("%016x", math.Float64bits(value)) }

func allBits(values []float64) []string {
	told := []string{}
	for _, value := range values {
		told = append(told, bits(value))
	}
	return told
}

func decimals(times []int64) []string {
	told := []string{}
	for _, each := range times {
		told = append(told, strconv.FormatInt(each, 10))
	}
	return told
}

func code(err error) string {
	return map[codes.Code]string{
		codes.Canceled: "CANCELLED", codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.InvalidArgument: "INVALID_ARGUMENT",
		codes.NotFound: "NOT_FOUND", codes.Unauthenticated: "UNAUTHENTICATED"}[status.Code(err)]
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
