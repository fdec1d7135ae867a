//! Adapters and devices: what there is, what it can do, what is asked of it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Options;
use crate::engine::EngineError;

/// An adapter as `refrain doctor` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSummary {
    /// The adapter's name.
    pub name: String,
    /// Vulkan, Metal or Dx12.
    pub backend: String,
    /// Discrete, integrated, virtual or a processor in disguise.
    pub kind: String,
    /// Driver and its version.
    pub driver: String,
    /// What the engine would use of it.
    pub level: Level,
}

impl AdapterSummary {
    /// A processor in disguise, which `auto` never takes.
    pub fn software(&self) -> bool {
        self.kind == format!("{:?}", wgpu::DeviceType::Cpu)
    }
}

/// What the engine uses of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Narrowest and widest subgroup; `None` when sums go through workgroup memory.
    pub subgroups: Option<(u32, u32)>,
    /// The adapter computes in f16; the engine stores f16 in any case, and sums in f32.
    pub f16: bool,
    /// Buffers may be device-local and mapped at once.
    pub mappable: bool,
    /// Commands go straight to the driver, without wgpu's bookkeeping (Vulkan).
    pub direct: bool,
    /// Pipelines can be kept on disk.
    pub pipeline_cache: bool,
    /// Dispatches can be timed.
    pub timestamps: bool,
    /// Workgroup memory, bytes.
    pub workgroup_memory: u32,
    /// Largest storage binding, bytes.
    pub storage_binding: u64,
}

/// A device with what it may report later.
pub(super) struct Device {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) summary: AdapterSummary,
    /// Where compiled pipelines are kept.
    pub(super) cache_file: Option<PathBuf>,
    trouble: Arc<Mutex<Option<EngineError>>>,
}

/// Adapters that the system offers.
pub(super) fn adapters() -> Vec<AdapterSummary> {
    pollster::block_on(instance().enumerate_adapters(backends())).iter().map(summary).collect()
}

/// The OpenGL backend is left out: it promises neither the limits nor the precision.
fn backends() -> wgpu::Backends {
    wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12
}

/// The process's one instance. It is kept where there is a GPU: after some thirty, NVIDIA's driver finds no adapter any
/// more, and it does not survive being unloaded under a thread that has used it. Without, software drivers are unloaded.
fn instance() -> wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    if let Some(kept) = INSTANCE.get() {
        return kept.clone();
    }
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends();
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(backends()));
    if adapters.iter().any(|adapter| adapter.get_info().device_type != wgpu::DeviceType::Cpu) {
        return INSTANCE.get_or_init(|| instance).clone();
    }
    instance
}

fn summary(adapter: &wgpu::Adapter) -> AdapterSummary {
    let (info, features, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
    let has = |feature| features.contains(feature);
    AdapterSummary {
        name: info.name,
        backend: format!("{:?}", info.backend),
        kind: format!("{:?}", info.device_type),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        level: Level {
            subgroups: has(wgpu::Features::SUBGROUP)
                .then_some((info.subgroup_min_size, info.subgroup_max_size)),
            f16: has(wgpu::Features::SHADER_F16),
            mappable: has(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            direct: info.backend == wgpu::Backend::Vulkan,
            pipeline_cache: has(wgpu::Features::PIPELINE_CACHE),
            timestamps: has(wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            storage_binding: limits.max_storage_buffer_binding_size,
        },
    }
}

impl Level {
    /// The same adapter as it would be with nothing beyond a downlevel adapter's limits.
    fn lowered(self) -> Self {
        let limits = wgpu::Limits::downlevel_defaults();
        Self {
            subgroups: None,
            f16: false,
            mappable: false,
            direct: false,
            pipeline_cache: false,
            timestamps: false,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            storage_binding: limits.max_storage_buffer_binding_size,
        }
    }

    fn features(&self) -> wgpu::Features {
        let mut features = wgpu::Features::empty();
        features.set(wgpu::Features::SUBGROUP, self.subgroups.is_some());
        features.set(wgpu::Features::PIPELINE_CACHE, self.pipeline_cache);
        features.set(
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES,
            self.timestamps,
        );
        features
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |yes| if yes { "yes" } else { "no" };
        match self.subgroups {
            Some((low, high)) if low == high => write!(f, "subgroups of {low}")?,
            Some((low, high)) => write!(f, "subgroups of {low} to {high}")?,
            None => write!(f, "no subgroups")?,
        }
        write!(
            f,
            ", f16 arithmetic {}, mappable primary buffers {}, commands {}, pipeline cache {}, timestamps {}, {} B workgroup memory",
            word(self.f16),
            word(self.mappable),
            if self.direct { "straight to the driver" } else { "through wgpu" },
            word(self.pipeline_cache),
            word(self.timestamps),
            self.workgroup_memory,
        )
    }
}

impl std::fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, {}, {}): {}", self.name, self.backend, self.kind, self.driver, self.level)
    }
}

impl Device {
    /// Opens the adapter that the options name, or the fastest that is offered.
    pub(super) fn open(options: &Options) -> Result<Self, EngineError> {
        let instance = instance();
        let adapter = choose(&instance, options)?;
        let mut summary = summary(&adapter);
        if options.downlevel {
            summary.level = summary.level.lowered();
        }
        summary.level.direct &= !options.through_wgpu;
        let required_limits =
            if options.downlevel { wgpu::Limits::downlevel_defaults() } else { adapter.limits() };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("refrain"),
            required_features: summary.level.features(),
            required_limits,
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| EngineError::Device { adapter: summary.name.clone(), reason: e.to_string() })?;
        let trouble: Arc<Mutex<Option<EngineError>>> = Arc::default();
        let report = Arc::clone(&trouble);
        device.on_uncaptured_error(Arc::new(move |error| note(&report, error.into())));
        let report = Arc::clone(&trouble);
        device.set_device_lost_callback(move |reason, text| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                note(&report, EngineError::Lost(text));
            }
        });
        if summary.level.subgroups.is_some() && !subgroups_in_order(&device, &queue) {
            summary.level.subgroups = None;
        }
        let cache_file = options
            .pipeline_cache
            .as_deref()
            .filter(|_| summary.level.direct && summary.level.pipeline_cache)
            .and_then(|folder| cache_file(folder, &adapter));
        Ok(Self { device, queue, summary, cache_file, trouble })
    }

    /// What went wrong since the last call.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        match self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Keeps the first report; later ones follow from it.
fn note(report: &Mutex<Option<EngineError>>, error: EngineError) {
    report.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
}

impl From<wgpu::Error> for EngineError {
    fn from(error: wgpu::Error) -> Self {
        match error {
            wgpu::Error::OutOfMemory { source } => Self::OutOfMemory(source.to_string()),
            wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
                Self::Gpu(description)
            }
        }
    }
}

fn choose(instance: &wgpu::Instance, options: &Options) -> Result<wgpu::Adapter, EngineError> {
    if let Some(wanted) = &options.adapter {
        let all = pollster::block_on(instance.enumerate_adapters(backends()));
        let names: Vec<String> = all.iter().map(|a| a.get_info().name).collect();
        return all
            .into_iter()
            .find(|a| a.get_info().name.to_lowercase().contains(&wanted.to_lowercase()))
            .ok_or_else(|| EngineError::NoAdapter(format!("none named {wanted:?} among {names:?}")));
    }
    let request = wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..wgpu::RequestAdapterOptions::default()
    };
    let adapter = pollster::block_on(instance.request_adapter(&request))
        .map_err(|e| EngineError::NoAdapter(e.to_string()))?;
    let info = adapter.get_info();
    if info.device_type == wgpu::DeviceType::Cpu && !options.software {
        return Err(EngineError::NoAdapter(format!("{} is a processor in disguise", info.name)));
    }
    Ok(adapter)
}

fn cache_file(folder: &Path, adapter: &wgpu::Adapter) -> Option<PathBuf> {
    let key = wgpu::util::pipeline_cache_key(&adapter.get_info())?;
    std::fs::create_dir_all(folder).ok()?;
    Some(folder.join(format!("{key}.bin")))
}

/// Runs `probe.wgsl`: neighbouring threads must be neighbouring lanes.
fn subgroups_in_order(device: &wgpu::Device, queue: &wgpu::Queue) -> bool {
    const THREADS: u64 = 256;
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("probe"),
        source: wgpu::ShaderSource::Wgsl(include_str!("../shaders/probe.wgsl").into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("probe"),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let buffer = |usage| {
        let descriptor = wgpu::BufferDescriptor {
            label: Some("probe"),
            size: 8 * THREADS,
            usage,
            mapped_at_creation: false,
        };
        device.create_buffer(&descriptor)
    };
    let found = buffer(wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC);
    let read = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("probe"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: found.as_entire_binding() }],
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
    encoder.copy_buffer_to_buffer(&found, 0, &read, 0, 8 * THREADS);
    queue.submit([encoder.finish()]);
    read.map_async(wgpu::MapMode::Read, .., |_| {});
    if device.poll(wgpu::PollType::wait_indefinitely()).is_err() {
        return false;
    }
    let Ok(view) = read.get_mapped_range(..) else { return false };
    let pairs: &[[u32; 2]] = bytemuck::cast_slice(&view);
    pairs
        .iter()
        .enumerate()
        .all(|(thread, [lane, size])| *size >= 4 && *lane as usize == thread % *size as usize)
}
