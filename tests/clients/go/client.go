package main

import (
	"context"
	"io"
	"math"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fleet/openmanager/api/frame/v1"
	"fleet/openmanager/api/gateway/v1"
	"fleet/openmanager/api/server/v1"
	"fleet/openmanager/api/timeseries/v1"
)

const retries = `{"methodConfig": [{
	"name": [{"service": "openmanager.api.gateway.v1.GatewayService"}],
	"retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE"]}}]}`

type key string

func (k key) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(k)}, nil
}

func (key) RequireTransportSecurity() bool { return true }

func connect(address, ca, token string) (*grpc.ClientConn, error) {
	transport, err := credentials.NewClientTLSFromFile(ca, "")
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(address,
		grpc.WithTransportCredentials(transport),
		grpc.WithPerRPCCredentials(key(token)),
		grpc.WithDefaultServiceConfig(retries),
		grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)))
}

func connectPlain(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(retries))
}

func hotRead(ctx context.Context, gateway gatewayv1.GatewayServiceClient, id string) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	reply, err := gateway.GetServer(ctx, &gatewayv1.GetServerRequest{Id: id, View: serverv1.View_VIEW_FULL})
	if err != nil {
		return nil, err
	}
	newest := map[string]float64{}
	for i, metric := range reply.Server.Metrics {
		if value := reply.Server.Values[i]; !math.IsNaN(value) {
			newest[metric] = value
		}
	}
	return newest, nil
}

func write(ctx context.Context, gateway gatewayv1.GatewayServiceClient, frame *framev1.Frame) (*framev1.WriteAck, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	reply, err := gateway.WriteFrame(ctx, &gatewayv1.WriteFrameRequest{Frame: frame})
	if err != nil {
		return nil, err
	}
	return reply.Ack, nil // on disk; what was refused of it is in Rejections
}

// value returns the sample of time t, server s and metric m.
func value(frame *framev1.Frame, t, s, m int) float64 {
	return frame.Values[(t*len(frame.Servers)+s)*len(frame.Metrics)+m]
}

func readRange(ctx context.Context, timeseries timeseriesv1.TimeseriesServiceClient, server string, start, end time.Time) (map[string]*timeseriesv1.Series, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	stream, err := timeseries.QueryRange(ctx, &timeseriesv1.QueryRangeRequest{
		Selector:  &framev1.Selector{Servers: []string{server}},
		StartTime: timestamppb.New(start),
		EndTime:   timestamppb.New(end),
	})
	if err != nil {
		return nil, err
	}
	found := map[string]*timeseriesv1.Series{}
	for {
		reply, err := stream.Recv()
		if err == io.EOF {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		part := reply.GetSeries() // nil in the first reply, the header
		if known := found[part.GetMetric()]; known != nil {
			known.TimeUnixNanos = append(known.TimeUnixNanos, part.TimeUnixNanos...)
			known.Values = append(known.Values, part.Values...)
		} else if part != nil {
			found[part.Metric] = part // a long series goes on in other replies
		}
	}
}

func watch(ctx context.Context, gateway gatewayv1.GatewayServiceClient, seen func(*gatewayv1.WatchServersResponse)) error {
	stream, err := gateway.WatchServers(ctx, &gatewayv1.WatchServersRequest{})
	if err != nil {
		return err
	}
	for {
		reply, err := stream.Recv()
		if err != nil {
			return err // of code Canceled when ctx was, DeadlineExceeded when its time is over
		}
		seen(reply) // its ResumeToken, in the next request, goes on after it
	}
}

// explain returns the reason of a refusal, and the field of the request that it is about.
func explain(err error) (reason, field string) {
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = detail.Reason
		case *errdetails.BadRequest:
			field = detail.FieldViolations[0].Field
		}
	}
	return reason, field
}
