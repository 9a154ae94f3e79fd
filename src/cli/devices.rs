//! `actscope devices`: lists devices and their limits, and marks the one that `auto` selects. Read next:
//! `../device/mod.rs`.

use super::{Failure, environment, size, with_hint};
use crate::device::gpu::{self, AdapterInfo};
use clap::Args;
use serde_json::json;
use std::io::Write;

/// Arguments of `actscope devices`.
#[derive(Args)]
pub(crate) struct Devices {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Devices {
    pub(super) fn run(self) -> Result<(), Failure> {
        let among = environment::read().adapters;
        let adapters = pollster::block_on(gpu::adapters(&among));
        // The list is in order of preference, and `auto` selects its first hardware adapter.
        let auto = adapters.iter().position(|adapter| !adapter.info.software);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut out = std::io::stdout().lock();
        if self.json {
            let adapter = |(i, a): (usize, &AdapterInfo)| {
                json!({
                    "device": "gpu", "name": a.info.name, "backend": a.backend, "type": a.device_type, "driver": a.info.detail,
                    "software": a.info.software, "max_binding_bytes": a.max_binding, "max_buffer_bytes": a.max_buffer, "auto": auto == Some(i),
                })
            };
            let cpu = json!({"device": "cpu", "threads": threads, "auto": auto.is_none()});
            let list: Vec<_> = adapters.iter().enumerate().map(adapter).chain([cpu]).collect();
            writeln!(out, "{}", json!(list))?;
            return Ok(());
        }
        for (i, a) in adapters.iter().enumerate() {
            let mark = if auto == Some(i) { "*" } else { " " };
            let note = if a.info.software { "; a software adapter, used only with --device gpu" } else { "" };
            writeln!(out, "{mark} gpu        {} ({}, {}{note})", a.info.name, a.info.detail, a.device_type)?;
            writeln!(
                out,
                "             largest binding {}, largest buffer {}",
                size(a.max_binding),
                size(a.max_buffer)
            )?;
        }
        if adapters.is_empty() {
            writeln!(out, "  gpu        none: {}", with_hint(&gpu::no_adapter(&among).into()))?;
        }
        writeln!(out, "{} cpu        {} threads, f32", if auto.is_none() { "*" } else { " " }, threads)?;
        writeln!(out, "  reference  one thread, f64: slow and accurate")?;
        writeln!(out, "* is the device that --device auto selects")?;
        Ok(())
    }
}
