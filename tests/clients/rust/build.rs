use std::{env, path::PathBuf};

/// Generates from the published protos; `PROTOC` names the compiler.
fn main() -> std::io::Result<()> {
    let protos = PathBuf::from(env::var("PROTOS").unwrap_or("../../../protos".into()));
    let files = ["gateway/v1/gateway.proto", "timeseries/v1/timeseries.proto"];
    tonic_prost_build::configure()
        .build_server(false)
        .include_file("openmanager.rs")
        .compile_protos(&files.map(|file| protos.join("openmanager/api").join(file)), &[protos])
}
