//! Where an inference's time goes: by kernel with timestamp queries, and the floor that the adapter sets.

use std::collections::BTreeMap;

use super::adapter::Device;
use super::kernels::Kernel;
use super::program::Dispatch;
use super::{GpuEngine, empty, unmapped};
use crate::engine::EngineError;

/// Queries in one set; WebGPU grants no more.
const QUERIES: usize = 4096;

/// What one variant of a kernel took.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// Kernel and variant, for people.
    pub kernel: String,
    /// Dispatches of one inference.
    pub dispatches: usize,
    /// Time of all of them, microseconds.
    pub micros: f64,
}

impl GpuEngine {
    /// Time by kernel, longest first, of one inference on what the last one left in memory; empty when the adapter
    /// cannot time dispatches. A timestamp after every dispatch costs time of its own: read shares, not sums.
    pub fn profile(&mut self) -> Result<Vec<KernelTime>, EngineError> {
        if !self.device.summary.level.timestamps {
            return Ok(Vec::new());
        }
        let mut times: BTreeMap<String, (usize, f64)> = BTreeMap::new();
        let period = f64::from(self.device.queue.get_timestamp_period()) * 1e-3;
        let infer = self.program.infer.clone();
        let indices: Vec<usize> =
            infer.iter().map(|d| self.pipelines.index(&self.device, d.kernel)).collect();
        self.device.check()?;
        for (dispatches, indices) in infer.chunks(QUERIES - 1).zip(indices.chunks(QUERIES - 1)) {
            let stamps = self.stamps(dispatches, indices)?;
            for (dispatch, pair) in dispatches.iter().zip(stamps.windows(2)) {
                let entry = times.entry(dispatch.kernel.label(dispatch.groups)).or_default();
                entry.0 += 1;
                entry.1 += pair[1].saturating_sub(pair[0]) as f64 * period;
            }
        }
        let mut times: Vec<KernelTime> = times
            .into_iter()
            .map(|(kernel, (dispatches, micros))| KernelTime { kernel, dispatches, micros })
            .collect();
        times.sort_by(|a, b| b.micros.total_cmp(&a.micros));
        Ok(times)
    }

    /// Timestamps before the first dispatch and after each.
    fn stamps(&self, dispatches: &[Dispatch], indices: &[usize]) -> Result<Vec<u64>, EngineError> {
        let Device { device, queue, .. } = &self.device;
        let count = dispatches.len() as u32 + 1;
        let set = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("profile"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let bytes = 8 * count as usize;
        let resolved = empty(
            &self.device,
            "profile",
            bytes,
            wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            false,
        );
        let read = empty(
            &self.device,
            "profile",
            bytes,
            wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            false,
        );
        let mut encoder = self.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.write_timestamp(&set, 0);
            for (i, (dispatch, &index)) in dispatches.iter().zip(indices).enumerate() {
                pass.set_pipeline(self.pipelines.get(index));
                pass.set_bind_group(0, &self.groups[dispatch.shard], &[dispatch.params]);
                pass.dispatch_workgroups(dispatch.groups[0], dispatch.groups[1], 1);
                pass.write_timestamp(&set, i as u32 + 1);
            }
        }
        encoder.resolve_query_set(&set, 0..count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &read, 0, bytes as u64);
        queue.submit([encoder.finish()]);
        read.map_async(wgpu::MapMode::Read, .., |_| {});
        self.finish()?;
        let mapped = read.get_mapped_range(..).map_err(unmapped)?;
        Ok(bytemuck::cast_slice(&mapped)[..count as usize].to_vec())
    }

    /// Turns every dispatch into one workgroup of a kernel that does nothing: what is left is the floor that upload,
    /// dependent dispatches and readback set on this adapter. `infer` then gives no trajectory.
    pub fn emptied(mut self) -> Result<Self, EngineError> {
        let idle = self.program.idle;
        let index = self.index(idle.kernel)?;
        for (dispatch, at) in self.program.infer.iter_mut().zip(&mut self.indices) {
            *dispatch = idle;
            *at = index;
        }
        self.device.check()?;
        self.ahead = self.inference()?;
        Ok(self)
    }
}

impl Kernel {
    /// Kernel, variant and workgroups, for people.
    fn label(&self, groups: [u32; 2]) -> String {
        let variant = match self {
            Self::Linear { tile, steps, norm, activation, .. } => {
                let norm = if *norm { " norm" } else { "" };
                let activation = ["", " gelu", " mish"][(*activation as usize).min(2)];
                format!(" {} columns {} x {steps} eights{norm}{activation}", tile.cols, tile.split)
            }
            _ => String::new(),
        };
        format!("{}{variant}, {} x {} workgroups", self.name(), groups[0], groups[1])
    }
}
