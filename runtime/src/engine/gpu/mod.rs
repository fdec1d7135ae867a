//! The GPU engine: runs a plan through wgpu (Vulkan, Metal or DX12).
//!
//! Guarantees: pipelines, buffers and bind groups are made at load; an inference is one small upload, one submission
//! and one small readback, and its commands are encoded while the one before runs. The same input and
//! noise give the same bits on the same adapter and driver: every output is summed in one fixed order, and no two
//! workgroups meet inside a dispatch. Sums are f32 whatever the weights are.
//!
//! Not here: falling back to the CPU, which is the caller's decision; adapters that only speak OpenGL; the operations of a
//! DiT (`silu`, `modulate`, `gate`, `rotate`, a head without LayerNorm), which are refused by name.

mod adapter;
mod chain;
mod fold;
mod kernels;
mod params;
mod profile;
mod program;
mod record;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use refrain_policies::package::Package;
use refrain_policies::plan::{Plan, Probe};

use super::{Engine, EngineError};
use adapter::Device;
use kernels::{Kernel, Pipelines};
use program::{Dispatch, Program};
use record::{Buffers, Recorder};
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
    /// Let wgpu record all commands, as where there is no Vulkan; for tests.
    pub through_wgpu: bool,
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
            through_wgpu: false,
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
    /// Where commands need not go through wgpu.
    recorder: Option<Recorder>,
    /// Indices into the recorder's pipelines, else into `pipelines`, one per dispatch of an inference.
    indices: Vec<usize>,
    /// Index into `pipelines` of the kernel that does nothing.
    idle: usize,
    /// One bind group per buffer of matrices.
    groups: Vec<wgpu::BindGroup>,
    arena: wgpu::Buffer,
    /// Upload, mapped between inferences.
    upload: wgpu::Buffer,
    readback: wgpu::Buffer,
    /// The next inference's commands; empty when there are none.
    ahead: Vec<wgpu::CommandBuffer>,
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
        let idle = pipelines.index(&device, program.idle.kernel);
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
        let slot = program.table.slot;
        let buffers = Buffers { arena: &arena, shards: &shards, numbers: &numbers, table: &table, slot };
        let recorder = if device.summary.level.direct { Recorder::new(&device, &buffers)? } else { None };
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
                                size: wgpu::BufferSize::new(slot as u64),
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
            recorder,
            indices: Vec::new(),
            idle,
            groups,
            arena,
            upload,
            readback,
            ahead: Vec::new(),
            wait: options.wait,
            patience: options.patience,
            bytes,
        };
        engine.load(options.poison)?;
        Ok(engine)
    }

    /// Index of a kernel's pipeline, which is made if need be.
    fn index(&mut self, kernel: Kernel) -> Result<usize, EngineError> {
        match &mut self.recorder {
            Some(recorder) => recorder.index(&self.device.summary.level, kernel),
            None => Ok(self.pipelines.index(&self.device, kernel)),
        }
    }

    fn load(&mut self, poison: bool) -> Result<(), EngineError> {
        let kernels = |dispatches: &[Dispatch]| dispatches.iter().map(|d| d.kernel).collect::<Vec<_>>();
        let (load, infer) = (kernels(&self.program.load), kernels(&self.program.infer));
        let load = load.into_iter().map(|k| self.index(k)).collect::<Result<Vec<_>, _>>()?;
        self.indices = infer.into_iter().map(|k| self.index(k)).collect::<Result<_, _>>()?;
        self.device.check()?;
        if let Some(recorder) = &self.recorder {
            recorder.keep_cache(&self.device);
        }
        let queue = &self.device.queue;
        if poison {
            let nan = vec![f32::NAN; self.program.arena];
            queue.write_buffer(&self.arena, 0, bytemuck::cast_slice(&nan));
        }
        for (at, values) in &self.program.constants {
            queue.write_buffer(&self.arena, 4 * *at as u64, bytemuck::cast_slice(values));
        }
        self.device.queue.submit(self.commands(&self.program.load, &load, false)?);
        self.finish()?;
        self.ahead = self.inference()?;
        self.device.check()
    }

    /// Adapter, level and variants in one line, for people.
    pub fn describe(&self) -> String {
        let level = &self.device.summary.level;
        let kernels: HashSet<Kernel> =
            self.program.load.iter().chain(&self.program.infer).map(|d| d.kernel).collect();
        let through = |name: &str| {
            let mut of = kernels.iter().filter(|k| k.name() == name).map(|k| k.subgroups(level));
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
            kernels.len(),
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

    /// Commands of dispatches; of an `inference`, between upload and readback.
    fn commands(
        &self,
        dispatches: &[Dispatch],
        indices: &[usize],
        inference: bool,
    ) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        let mut encoder = self.encoder();
        if inference {
            let (to, bytes) = (4 * self.program.upload_at as u64, 4 * self.program.upload as u64);
            encoder.copy_buffer_to_buffer(&self.upload, 0, &self.arena, to, bytes);
        }
        let mut commands = Vec::new();
        if let Some(recorder) = &self.recorder {
            // Through these wgpu knows that the buffers are in use, and as what.
            let idle: Vec<Dispatch> =
                (0..self.groups.len()).map(|shard| Dispatch { shard, ..self.program.idle }).collect();
            self.encode(&mut encoder, &idle, &vec![self.idle; idle.len()]);
            let mut direct = self.encoder();
            recorder.record(&mut direct, dispatches, indices)?;
            commands.extend([encoder.finish(), direct.finish()]);
            encoder = self.encoder();
        } else {
            self.encode(&mut encoder, dispatches, indices);
        }
        if inference {
            let (from, bytes) =
                (4 * self.program.trajectory.at as u64, 4 * self.plan.trajectory.len() as u64);
            encoder.copy_buffer_to_buffer(&self.arena, from, &self.readback, 0, bytes);
        }
        commands.push(encoder.finish());
        Ok(commands)
    }

    fn inference(&self) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.commands(&self.program.infer, &self.indices, true)
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
        if self.ahead.is_empty() {
            self.ahead = self.inference()?;
        }
        self.device.queue.submit(self.ahead.drain(..));
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
        let ahead = self.inference();
        self.wait(&left)?;
        self.ahead = ahead?;
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
