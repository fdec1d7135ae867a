//! The GPU engine: runs a plan through wgpu (Vulkan, Metal or DX12).
//!
//! Guarantees: pipelines, buffers and bind groups are made at load; an inference is one small upload, one command
//! buffer and one small readback, and its command buffer is encoded while the one before runs. The same input and
//! noise give the same bits on the same adapter and driver: every output is summed in one fixed order, and no two
//! workgroups meet inside a dispatch. Sums are f32 whatever the weights are.
//!
//! Not here: falling back to the CPU, which is the caller's decision; adapters that only speak OpenGL.

mod adapter;
mod chain;
mod fold;
mod kernels;
mod params;
mod profile;
mod program;
#[cfg(test)]
mod tests;
mod weights;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use refrain_policies::package::Package;
use refrain_policies::plan::{Plan, Probe};

use super::{Engine, EngineError};
use adapter::Device;
use kernels::Pipelines;
use program::{Dispatch, Program};
use weights::Weights;

pub use adapter::{AdapterSummary, Level};
pub use profile::KernelTime;

/// Polls before a spinning wait gives way to a sleeping one; a poll takes about a microsecond.
const SPINS: usize = 1 << 20;
/// Longest wait for the GPU unless the options say otherwise.
const PATIENCE: Duration = Duration::from_secs(20);

/// How an inference waits for the GPU.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// Asks again and again: least latency, one busy core.
    #[default]
    Spin,
    /// Lets the driver wake the thread: about 40 microseconds more, an idle core.
    Sleep,
}

/// How weights are stored on the GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As in the package.
    #[default]
    Stored,
    /// f16, packed in pairs, so that no adapter feature is needed.
    F16,
    /// f32.
    F32,
}

/// What is asked of a GPU engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Part of the adapter's name; otherwise the fastest one.
    pub adapter: Option<String>,
    /// Accept an adapter that is a processor in disguise.
    pub software: bool,
    /// How weights are stored.
    pub precision: Precision,
    /// How to wait.
    pub wait: Wait,
    /// Longest wait for one inference; a device that takes longer is taken for lost.
    pub patience: Duration,
    /// Folder in which compiled pipelines are kept.
    pub pipeline_cache: Option<PathBuf>,
    /// Use no more than a downlevel adapter offers, for tests of small GPUs.
    pub downlevel: bool,
    /// Fill the arena with NaN before load, so that reading what was never written shows; for tests.
    pub poison: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            adapter: None,
            software: false,
            precision: Precision::default(),
            wait: Wait::default(),
            patience: PATIENCE,
            pipeline_cache: None,
            downlevel: false,
            poison: false,
        }
    }
}

/// Runs one plan on a GPU.
pub struct GpuEngine {
    device: Device,
    plan: Arc<Plan>,
    program: Program,
    pipelines: Pipelines,
    /// Indices into `pipelines`, one per dispatch of an inference.
    indices: Vec<usize>,
    /// One bind group per buffer of matrices.
    groups: Vec<wgpu::BindGroup>,
    arena: wgpu::Buffer,
    /// Upload, mapped between inferences.
    upload: wgpu::Buffer,
    readback: wgpu::Buffer,
    /// The next inference's commands.
    ahead: Option<wgpu::CommandBuffer>,
    wait: Wait,
    patience: Duration,
    bytes: usize,
    /// What was last said to be known; uploaded before every inference.
    known: Vec<f32>,
}

impl GpuEngine {
    /// Adapters that the system offers, for people: nothing is opened.
    pub fn adapters() -> Vec<AdapterSummary> {
        adapter::adapters()
    }

    /// Opens an adapter, uploads weights, compiles kernels and runs the plan's load-time operations.
    pub fn new(package: &Package, plan: Arc<Plan>, options: &Options) -> Result<Self, EngineError> {
        let device = Device::open(options)?;
        let limits = device.device.limits();
        let limit = usize::try_from(limits.max_storage_buffer_binding_size.min(limits.max_buffer_size))
            .unwrap_or(usize::MAX);
        let mut weights = Weights::new(package, options.precision, limit);
        let alignment = limits.min_uniform_buffer_offset_alignment as usize;
        let program = Program::new(&plan, &mut weights, alignment)?;
        for (what, bytes) in [("the arena", 4 * program.arena), ("the vectors", 4 * weights.numbers.len())] {
            if bytes > limit {
                return Err(EngineError::TooLarge { what, bytes, limit });
            }
        }
        let workgroups = limits.max_compute_workgroups_per_dimension as usize;
        if let Some(most) = program.infer.iter().chain(&program.load).flat_map(|d| d.groups).max()
            && most as usize > workgroups
        {
            return Err(EngineError::TooLarge {
                what: "a dispatch",
                bytes: most as usize,
                limit: workgroups,
            });
        }

        let mut pipelines = Pipelines::new(&device.device, program.table.slot);
        let load: Vec<usize> = program.load.iter().map(|d| pipelines.index(&device, d.kernel)).collect();
        let indices: Vec<usize> = program.infer.iter().map(|d| pipelines.index(&device, d.kernel)).collect();
        device.check()?;
        device.keep_cache();

        let storage = |label, bytes: &[u8]| filled(&device, label, wgpu::BufferUsages::STORAGE, bytes);
        let numbers = storage("vectors", bytemuck::cast_slice(&weights.numbers));
        let shards: Vec<wgpu::Buffer> = weights.shards.iter().map(|s| storage("matrices", s)).collect();
        let table = filled(&device, "parameters", wgpu::BufferUsages::UNIFORM, &program.table.bytes);
        let arena = empty(
            &device,
            "arena",
            4 * program.arena,
            wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            false,
        );
        let upload = empty(
            &device,
            "upload",
            4 * program.upload,
            wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
            true,
        );
        let readback = empty(
            &device,
            "readback",
            4 * plan.trajectory.len(),
            wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            false,
        );
        let groups = shards
            .iter()
            .map(|shard| {
                device.device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some("refrain"),
                    layout: &pipelines.bindings,
                    entries: &[
                        wgpu::BindGroupEntry { binding: 0, resource: arena.as_entire_binding() },
                        wgpu::BindGroupEntry { binding: 1, resource: shard.as_entire_binding() },
                        wgpu::BindGroupEntry { binding: 2, resource: numbers.as_entire_binding() },
                        wgpu::BindGroupEntry {
                            binding: 3,
                            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                                buffer: &table,
                                offset: 0,
                                size: wgpu::BufferSize::new(program.table.slot as u64),
                            }),
                        },
                    ],
                })
            })
            .collect();
        device.check()?;
        let weight_bytes = shards.iter().map(|s| s.size() as usize).sum::<usize>() + numbers.size() as usize;
        let bytes = weight_bytes + arena.size() as usize + table.size() as usize;
        let mut engine = Self {
            known: vec![0.0; plan.known.map_or(0, |view| view.len())],
            device,
            plan,
            program,
            pipelines,
            indices,
            groups,
            arena,
            upload,
            readback,
            ahead: None,
            wait: options.wait,
            patience: options.patience,
            bytes,
        };
        engine.load(&load, options.poison)?;
        Ok(engine)
    }

    fn load(&mut self, indices: &[usize], poison: bool) -> Result<(), EngineError> {
        let queue = &self.device.queue;
        if poison {
            let nan = vec![f32::NAN; self.program.arena];
            queue.write_buffer(&self.arena, 0, bytemuck::cast_slice(&nan));
        }
        for (at, values) in &self.program.constants {
            queue.write_buffer(&self.arena, 4 * *at as u64, bytemuck::cast_slice(values));
        }
        let mut encoder = self.encoder();
        self.encode(&mut encoder, &self.program.load, indices);
        queue.submit([encoder.finish()]);
        self.finish()?;
        self.ahead = Some(self.encode_inference());
        self.device.check()
    }

    /// Adapter, level and variants in one line, for people.
    pub fn describe(&self) -> String {
        let level = &self.device.summary.level;
        let through = |name: &str| {
            let mut of = self.pipelines.kernels().filter(|k| k.name() == name).map(|k| k.subgroups(level));
            let first = of.next()?;
            let word = match (first, of.all(|other| other == first)) {
                (_, false) => "both",
                (true, _) => "subgroups",
                (false, _) => "workgroup memory",
            };
            Some(format!("{name} sums through {word}"))
        };
        let sums: Vec<String> =
            ["linear", "attention", "attend", "cross", "tokens"].into_iter().filter_map(through).collect();
        format!(
            "{}; {}; {} pipelines, {} dispatches, {:.1} MB",
            self.device.summary,
            sums.join(", "),
            self.pipelines.kernels().count(),
            self.dispatches(),
            self.bytes as f64 / 1e6
        )
    }

    /// Changes how long an inference may take before the device is taken for lost.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Drops the device under the engine, as an unplugged adapter would, for tests.
    #[cfg(test)]
    pub(super) fn lose(&self) {
        self.device.device.destroy();
    }

    /// The adapter in use.
    pub fn adapter(&self) -> &AdapterSummary {
        &self.device.summary
    }

    /// Dispatches of one inference, each dependent on the one before.
    pub fn dispatches(&self) -> usize {
        self.program.infer.len()
    }

    /// A probed value of the last inference, row-major.
    pub fn probe(&mut self, probe: &Probe) -> Result<Vec<f32>, EngineError> {
        let view = &probe.view;
        let (at, span) = (self.plan.offset(view), (view.rows - 1) * view.stride + view.cols);
        let buffer = empty(
            &self.device,
            "probe",
            4 * span,
            wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            false,
        );
        let mut encoder = self.encoder();
        encoder.copy_buffer_to_buffer(&self.arena, 4 * at as u64, &buffer, 0, 4 * span as u64);
        self.device.queue.submit([encoder.finish()]);
        buffer.map_async(wgpu::MapMode::Read, .., |_| {});
        self.finish()?;
        let mapped = buffer.get_mapped_range(..).map_err(unmapped)?;
        let numbers: &[f32] = &bytemuck::cast_slice(&mapped)[..span];
        Ok(numbers.chunks(view.stride).flat_map(|row| &row[..view.cols]).copied().collect())
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("refrain") })
    }

    fn encode(&self, encoder: &mut wgpu::CommandEncoder, dispatches: &[Dispatch], indices: &[usize]) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let mut pipeline = None;
        for (dispatch, &index) in dispatches.iter().zip(indices) {
            if pipeline != Some(index) {
                pass.set_pipeline(self.pipelines.get(index));
                pipeline = Some(index);
            }
            pass.set_bind_group(0, &self.groups[dispatch.shard], &[dispatch.params]);
            pass.dispatch_workgroups(dispatch.groups[0], dispatch.groups[1], 1);
        }
    }

    fn encode_inference(&self) -> wgpu::CommandBuffer {
        let mut encoder = self.encoder();
        let p = &self.program;
        encoder.copy_buffer_to_buffer(
            &self.upload,
            0,
            &self.arena,
            4 * p.upload_at as u64,
            4 * p.upload as u64,
        );
        self.encode(&mut encoder, &p.infer, &self.indices);
        let bytes = 4 * self.plan.trajectory.len() as u64;
        encoder.copy_buffer_to_buffer(&self.arena, 4 * p.trajectory.at as u64, &self.readback, 0, bytes);
        encoder.finish()
    }

    /// Waits until everything submitted is done.
    fn finish(&self) -> Result<(), EngineError> {
        let wait = wgpu::PollType::Wait { submission_index: None, timeout: Some(self.patience) };
        let done = self.device.device.poll(wait);
        self.device.check()?;
        done.map(|_| ()).map_err(|e| EngineError::Lost(e.to_string()))
    }

    /// Waits until `left`, counted down by callbacks, is 0.
    fn wait(&self, left: &AtomicU8) -> Result<(), EngineError> {
        if self.wait == Wait::Spin {
            for _ in 0..SPINS {
                if self.device.device.poll(wgpu::PollType::Poll).is_err() || left.load(Ordering::Acquire) == 0
                {
                    break;
                }
                std::hint::spin_loop();
            }
        }
        if left.load(Ordering::Acquire) != 0 {
            self.finish()?;
        }
        self.device.check()?;
        if left.load(Ordering::Acquire) != 0 {
            return Err(EngineError::Lost("a mapping did not complete".into()));
        }
        Ok(())
    }
}

impl Engine for GpuEngine {
    fn infer(
        &mut self,
        observation: &[f32],
        noise: &[f32],
        trajectory: &mut [f32],
    ) -> Result<(), EngineError> {
        super::check_sizes(&self.plan, observation, noise, trajectory)?;
        self.device.check()?;
        {
            let mut mapped = self.upload.get_mapped_range_mut(..).map_err(unmapped)?;
            let (first, second) = (4 * noise.len(), 4 * observation.len());
            mapped.slice(..first).copy_from_slice(bytemuck::cast_slice(noise));
            mapped.slice(first..first + second).copy_from_slice(bytemuck::cast_slice(observation));
            let third = first + second;
            mapped
                .slice(third..third + 4 * self.known.len())
                .copy_from_slice(bytemuck::cast_slice(&self.known));
        }
        self.upload.unmap();
        let commands = self.ahead.take().unwrap_or_else(|| self.encode_inference());
        self.device.queue.submit([commands]);
        // Both mappings complete with the inference: the result to be read, the upload to be written next.
        let left = Arc::new(AtomicU8::new(2));
        for (buffer, mode) in [(&self.readback, wgpu::MapMode::Read), (&self.upload, wgpu::MapMode::Write)] {
            let left = Arc::clone(&left);
            buffer.map_async(mode, .., move |mapped| {
                if mapped.is_ok() {
                    left.fetch_sub(1, Ordering::Release);
                }
            });
        }
        self.ahead = Some(self.encode_inference());
        self.wait(&left)?;
        {
            let mapped = self.readback.get_mapped_range(..4 * trajectory.len() as u64).map_err(unmapped)?;
            trajectory.copy_from_slice(bytemuck::cast_slice(&mapped));
        }
        self.readback.unmap();
        Ok(())
    }

    fn know(&mut self, known: &[f32]) -> Result<(), EngineError> {
        super::check_known(&self.plan, known)?;
        self.known.copy_from_slice(known);
        Ok(())
    }

    fn name(&self) -> String {
        let a = &self.device.summary;
        format!("gpu: {} ({})", a.name, a.backend)
    }
}

fn unmapped(error: impl std::fmt::Display) -> EngineError {
    EngineError::Lost(format!("a buffer is not mapped: {error}"))
}

fn empty(
    device: &Device,
    label: &str,
    bytes: usize,
    usage: wgpu::BufferUsages,
    mapped_at_creation: bool,
) -> wgpu::Buffer {
    // A binding of no bytes is not allowed.
    let size = bytes.next_multiple_of(16).max(16) as u64;
    device.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size,
        usage,
        mapped_at_creation,
    })
}

fn filled(device: &Device, label: &str, usage: wgpu::BufferUsages, bytes: &[u8]) -> wgpu::Buffer {
    let buffer = empty(device, label, bytes.len(), usage | wgpu::BufferUsages::COPY_DST, false);
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(4), 0);
    device.queue.write_buffer(&buffer, 0, &padded);
    buffer
}
