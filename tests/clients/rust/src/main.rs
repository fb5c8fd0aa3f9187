//! Asks a mesh what every client of tests/clients asks, and prints what it was told as JSON.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client::{connect, explain, gateway, hot_read, patiently, read_range, watch, write};
use openmanager::api::frame::v1::{Frame, ServerInfo};
use openmanager::api::gateway::v1::{GetStorageStatusRequest, ListServersRequest};
use openmanager::api::timeseries::v1::timeseries_service_client::TimeseriesServiceClient;
use prost::Message;
use serde_json::{Value, json};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

mod client;
include!(concat!(env!("OUT_DIR"), "/openmanager.rs")); // the module openmanager

const OWN: &str = "client-rust";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let (address, ca) = (std::env::var("OPENMANAGER_GATEWAY")?, std::env::var("OPENMANAGER_TLS_CA")?);
    let connection = connect(&address, &ca, &std::env::var("OPENMANAGER_TOKEN")?).await?;
    let mut mesh = gateway(connection.clone());
    let mut told = BTreeMap::new();

    told.insert("vectors", vectors(&arguments[1])?);
    let health = HealthClient::new(connection.clone()).check(HealthCheckRequest::default()).await?.into_inner();
    told.insert("health", json!(health.status().as_str_name()));

    let board = mesh.get_storage_status(GetStorageStatusRequest {}).await?.into_inner();
    let states: HashMap<_, _> = board.services.iter().map(|each| (&each.service, each.state().as_str_name())).collect();
    told.insert("services", json!(states));

    let (mut servers, mut page_token) = (vec![], String::new());
    loop {
        let request =
            ListServersRequest { page_size: 2, page_token, filter: "role = vector".into(), ..Default::default() };
        let page = mesh.list_servers(request).await?.into_inner();
        servers.extend(page.servers.into_iter().map(|server| server.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    told.insert("servers", json!(servers));

    let hot: HashMap<_, _> =
        hot_read(&mut mesh, "vector-1").await?.into_iter().map(|(name, x)| (name, bits(x))).collect();
    told.insert("hot", json!(hot));

    let end = UNIX_EPOCH + Duration::from_millis(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64);
    let frame = Frame {
        time_unix_nanos: vec![nanos(end - Duration::from_secs(2)), nanos(end - Duration::from_secs(1))],
        servers: vec![OWN.into()],
        metrics: vec!["cpu_usage".into(), "memory_usage".into()],
        values: vec![0.1, f64::INFINITY, 1.0 / 3.0, f64::NAN],
        server_infos: vec![ServerInfo {
            id: OWN.into(),
            role: "client".into(),
            labels: HashMap::from([("language".into(), "rust".into())]),
            ..Default::default()
        }],
        ..Default::default()
    };
    let times = decimals(&frame.time_unix_nanos);
    let ack = write(&mut mesh, frame).await?;
    let rejections: Vec<_> = ack
        .rejections
        .iter()
        .map(|each| json!([each.server, each.metric, each.reason, each.sample_count.to_string()]))
        .collect();
    let written =
        json!({"server": OWN, "times": times, "accepted": ack.accepted_sample_count, "rejections": rejections});
    told.insert("written", written);
    let mut timeseries = TimeseriesServiceClient::new(connection.clone());
    let range: HashMap<_, _> = read_range(&mut timeseries, OWN, end - Duration::from_secs(60), end)
        .await?
        .into_iter()
        .map(|(metric, series)| {
            (metric, json!({"times": decimals(&series.time_unix_nanos), "values": all_bits(&series.values)}))
        })
        .collect();
    told.insert("range", json!(range));

    let mut kinds = vec![];
    watch(&mut mesh, 30.0, |reply| {
        kinds.push(reply.kind().as_str_name());
        kinds.len() < 2
    })
    .await?;
    told.insert("watch", json!({"kinds": kinds, "ended": "dropped"}));
    told.insert("deadline", json!(code(&watch(&mut mesh, 0.3, |_| true).await.unwrap_err())));

    let without = Frame {
        time_unix_nanos: vec![nanos(SystemTime::now())],
        servers: vec![OWN.into()],
        metrics: vec!["cpu_usage".into()],
        ..Default::default()
    };
    let refused = write(&mut mesh, without).await.unwrap_err();
    let (reason, field) = explain(&refused);
    told.insert("refused", json!({"code": code(&refused), "reason": reason, "field": field}));

    let missing = hot_read(&mut mesh, "nobody").await.unwrap_err();
    let details = missing.get_error_details();
    let resource = details.resource_info().ok_or("no ResourceInfo")?;
    let not_found = json!({"code": code(&missing), "type": resource.resource_type, "name": resource.resource_name});
    told.insert("not_found", not_found);

    let mut stranger = gateway(connect(&address, &ca, "omk_wrong").await?);
    let refused = hot_read(&mut stranger, "vector-1").await.unwrap_err();
    told.insert("stranger", json!({"code": code(&refused), "reason": explain(&refused).0}));

    let plain = Endpoint::from_shared(format!("http://{}", arguments[2]))?.connect_lazy();
    let unsteady = gateway(InterceptedService::new(plain, client::Key(String::new())));
    let retried = patiently(async || hot_read(&mut unsteady.clone(), "vector-1").await).await?;
    told.insert("retried", json!(retried.len()));

    println!("{}", json!(told));
    Ok(())
}

fn vectors(path: &str) -> Result<Value, Box<dyn Error>> {
    let given: Vec<Value> = serde_json::from_reader(std::fs::File::open(path)?)?;
    let told = given.iter().map(|vector| {
        let wire = unhex(vector["wire"].as_str().unwrap_or_default());
        let frame = Frame::decode(wire.as_slice())?;
        let mut values = vec![];
        for t in 0..frame.time_unix_nanos.len() {
            for s in 0..frame.servers.len() {
                for m in 0..frame.metrics.len() {
                    values.push(bits(client::value(&frame, t, s, m)));
                }
            }
        }
        Ok(json!({
            "name": vector["name"], "times": decimals(&frame.time_unix_nanos), "servers": frame.servers,
            "metrics": frame.metrics, "values": values, "encoded": hex(&frame.encode_to_vec()),
        }))
    });
    told.collect::<Result<Value, Box<dyn Error>>>()
}

fn code(status: &Status) -> &'static str {
    match status.code() {
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::Unauthenticated => "UNAUTHENTICATED",
        other => other.description(),
    }
}

fn nanos(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i64
}

fn bits(value: f64) -> String {
    format!("{:016x}", value.to_bits())
}

fn all_bits(values: &[f64]) -> Vec<String> {
    values.iter().map(|value| bits(*value)).collect()
}

fn decimals(times: &[i64]) -> Vec<String> {
    times.iter().map(i64::to_string).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).filter_map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
