//! Waits for the device. Natively, polling runs wgpu's callbacks; in a browser the event loop runs them.
//! Read next: `buffers.rs` and `encoder.rs`, which wait.

/// Waits for the device, so that its callbacks run. In a browser, where the event loop runs them, this does nothing.
/// The caller awaits the callbacks' messages in both cases.
#[cfg_attr(target_arch = "wasm32", allow(unused_variables, reason = "there is nothing to wait for"))]
pub(super) fn wait(device: &wgpu::Device, index: wgpu::SubmissionIndex) -> Result<(), String> {
    #[cfg(not(target_arch = "wasm32"))]
    device.poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: None }).map_err(|e| e.to_string())?;
    Ok(())
}
