use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tonic::codec::CompressionEncoding;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, metadata::MetadataValue};
use tonic_types::StatusExt;

use crate::openmanager::api::frame::v1::{Frame, Selector, WriteAck};
use crate::openmanager::api::gateway::v1::gateway_service_client::GatewayServiceClient;
use crate::openmanager::api::gateway::v1::{
    GetServerRequest, WatchServersRequest, WatchServersResponse, WriteFrameRequest,
};
use crate::openmanager::api::server::v1::View;
use crate::openmanager::api::timeseries::v1::query_range_response::Part;
use crate::openmanager::api::timeseries::v1::timeseries_service_client::TimeseriesServiceClient;
use crate::openmanager::api::timeseries::v1::{QueryRangeRequest, Series};

#[derive(Clone)]
pub struct Key(pub String);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let bearer = MetadataValue::try_from(format!("Bearer {}", self.0));
        request.metadata_mut().insert("authorization", bearer.map_err(|_| Status::unauthenticated("no key"))?);
        Ok(request)
    }
}

pub type Connection = InterceptedService<Channel, Key>;

pub async fn connect(address: &str, ca: &str, key: &str) -> Result<Connection, Box<dyn std::error::Error>> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(ca)?));
    let channel = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect().await?;
    Ok(InterceptedService::new(channel, Key(key.into())))
}

pub fn gateway(connection: Connection) -> GatewayServiceClient<Connection> {
    GatewayServiceClient::new(connection).send_compressed(CompressionEncoding::Gzip)
}

pub fn within<T>(seconds: f64, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs_f64(seconds));
    request
}

pub async fn hot_read(
    gateway: &mut GatewayServiceClient<Connection>,
    id: &str,
) -> Result<HashMap<String, f64>, Status> {
    let request = GetServerRequest { id: id.into(), view: View::Full.into() };
    let reply = gateway.get_server(within(10.0, request)).await?.into_inner();
    let server = reply.server.unwrap_or_default();
    Ok(server.metrics.into_iter().zip(server.values).filter(|(_, value)| !value.is_nan()).collect())
}

pub async fn write(gateway: &mut GatewayServiceClient<Connection>, frame: Frame) -> Result<WriteAck, Status> {
    let request = WriteFrameRequest { frame: Some(frame) };
    let reply = gateway.write_frame(within(10.0, request)).await?.into_inner();
    Ok(reply.ack.unwrap_or_default()) // on disk; what was refused of it is in rejections
}

/// Returns the sample of time t, server s and metric m.
pub fn value(frame: &Frame, t: usize, s: usize, m: usize) -> f64 {
    frame.values[(t * frame.servers.len() + s) * frame.metrics.len() + m]
}

pub async fn read_range(
    timeseries: &mut TimeseriesServiceClient<Connection>,
    server: &str,
    start: SystemTime,
    end: SystemTime,
) -> Result<HashMap<String, Series>, Status> {
    let request = QueryRangeRequest {
        selector: Some(Selector { servers: vec![server.into()], ..Default::default() }),
        start_time: Some(start.into()),
        end_time: Some(end.into()),
        ..Default::default()
    };
    let mut replies = timeseries.query_range(within(30.0, request)).await?.into_inner();
    let mut found: HashMap<String, Series> = HashMap::new();
    while let Some(reply) = replies.message().await? {
        if let Some(Part::Series(part)) = reply.part {
            // The header comes first; a long series comes in several replies.
            let series = found.entry(part.metric).or_default();
            series.time_unix_nanos.extend(part.time_unix_nanos);
            series.values.extend(part.values);
        }
    }
    Ok(found)
}

/// Tells what is seen until `seen` says that it is enough, or the time is over, which is DEADLINE_EXCEEDED.
pub async fn watch(
    gateway: &mut GatewayServiceClient<Connection>,
    seconds: f64,
    mut seen: impl FnMut(WatchServersResponse) -> bool,
) -> Result<(), Status> {
    let mut replies = gateway.watch_servers(within(seconds, WatchServersRequest::default())).await?.into_inner();
    while let Some(reply) = replies.message().await? {
        // Its resume_token, in the next request, goes on after it.
        if !seen(reply) {
            break; // dropping the stream cancels it
        }
    }
    Ok(())
}

/// Tries again what nobody answered: reads, and writes of frames, which change nothing when they are repeated.
pub async fn patiently<T>(mut attempt: impl AsyncFnMut() -> Result<T, Status>) -> Result<T, Status> {
    for pause in [100, 200, 400] {
        match attempt().await {
            Err(status) if status.code() == Code::Unavailable => tokio::time::sleep(Duration::from_millis(pause)).await,
            done => return done,
        }
    }
    attempt().await
}

/// Returns the reason of a refusal, and the field of the request that it is about.
pub fn explain(status: &Status) -> (String, String) {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone());
    let field =
        details.bad_request().and_then(|bad| bad.field_violations.first()).map(|violation| violation.field.clone());
    (reason.unwrap_or_default(), field.unwrap_or_default())
}
