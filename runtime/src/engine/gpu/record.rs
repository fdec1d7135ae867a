//! Recording straight through wgpu-hal on Vulkan: the dispatches of an inference without wgpu's bookkeeping.
//!
//! wgpu follows the state of every buffer at every dispatch, which takes a processor longer than the driver's own work.
//! Here all dispatches use the same four buffers in the same way, so that one barrier on the arena before each is all
//! there is to know. Guarantees: the same pipelines, bindings and barriers as through wgpu, hence the same bits.
//!
//! Not here: other backends, copies, timestamps; wgpu records those.

#![allow(unsafe_code, reason = "wgpu-hal is unsafe as a whole; what it asks for is said at each block")]

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use wgpu::hal::{self, CommandEncoder as _, Device as _, vulkan};
use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};

use xxhash_rust::xxh3::xxh3_64;

use super::adapter::{Device, Level};
use super::kernels::{Kernel, layout_entries};
use super::program::Dispatch;
use crate::engine::EngineError;

type Api = hal::api::Vulkan;

/// What wgpu grants on Vulkan, Metal and DX12, subgroups where there are some.
pub(super) const CAPABILITIES: Capabilities =
    Capabilities::SUBGROUP.union(Capabilities::SHADER_FLOAT16_IN_FLOAT32);
/// How long a device that is given up may take to finish.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The four buffers of a dispatch, see `bindings.wgsl`.
pub(super) struct Buffers<'a> {
    pub(super) arena: &'a wgpu::Buffer,
    /// One bind group each.
    pub(super) shards: &'a [wgpu::Buffer],
    pub(super) numbers: &'a wgpu::Buffer,
    pub(super) table: &'a wgpu::Buffer,
    /// Bytes of one entry of the table.
    pub(super) slot: usize,
}

/// Pipelines and bind groups of the device, made once.
pub(super) struct Recorder {
    device: wgpu::Device,
    arena: wgpu::Buffer,
    cache: Option<vulkan::PipelineCache>,
    bindings: Option<vulkan::BindGroupLayout>,
    layout: Option<vulkan::PipelineLayout>,
    modules: HashMap<(&'static str, bool), vulkan::ShaderModule>,
    pipelines: Vec<(Kernel, vulkan::ComputePipeline)>,
    groups: Vec<vulkan::BindGroup>,
}

impl Recorder {
    /// `None` where the device is not Vulkan's.
    pub(super) fn new(device: &Device, buffers: &Buffers<'_>) -> Result<Option<Self>, EngineError> {
        let mut recorder = Self {
            device: device.device.clone(),
            arena: buffers.arena.clone(),
            cache: None,
            bindings: None,
            layout: None,
            modules: HashMap::new(),
            pipelines: Vec::new(),
            groups: Vec::new(),
        };
        Ok((recorder.bind(buffers)? && recorder.open_cache(device)?).then_some(recorder))
    }

    fn bind(&mut self, buffers: &Buffers<'_>) -> Result<bool, EngineError> {
        let entry = |binding| hal::BindGroupEntry { binding, resource_index: binding, count: 1 };
        // SAFETY: layouts and groups are destroyed in `drop` and nowhere else; the buffers have the usages that the
        // layout names, outlive the groups' use (see `record`), and the table's entry lies inside it.
        unsafe {
            let Some(raw) = self.device.as_hal::<Api>() else { return Ok(false) };
            let of = |buffer: &wgpu::Buffer| buffer.as_hal::<Api>().ok_or_else(destroyed);
            let bindings = self.bindings.insert(
                raw.create_bind_group_layout(&hal::BindGroupLayoutDescriptor {
                    label: None,
                    flags: hal::BindGroupLayoutFlags::empty(),
                    entries: &layout_entries(buffers.slot),
                })
                .map_err(refused)?,
            );
            self.layout = Some(
                raw.create_pipeline_layout(&hal::PipelineLayoutDescriptor {
                    label: None,
                    flags: hal::PipelineLayoutFlags::empty(),
                    bind_group_layouts: &[Some(&*bindings)],
                    immediate_size: 0,
                })
                .map_err(refused)?,
            );
            let (arena, numbers, table) = (of(buffers.arena)?, of(buffers.numbers)?, of(buffers.table)?);
            for shard in buffers.shards {
                let shard = of(shard)?;
                let whole = |buffer| hal::BufferBinding::new_unchecked(buffer, 0, None);
                let slot = wgpu::BufferSize::new(buffers.slot as u64);
                self.groups.push(
                    raw.create_bind_group(&hal::BindGroupDescriptor {
                        label: None,
                        layout: bindings,
                        buffers: &[
                            whole(&*arena),
                            whole(&*shard),
                            whole(&*numbers),
                            hal::BufferBinding::new_unchecked(&*table, 0, slot),
                        ],
                        samplers: &[],
                        textures: &[],
                        entries: &[entry(0), entry(1), entry(2), entry(3)],
                        acceleration_structures: &[],
                        external_textures: &[],
                    })
                    .map_err(refused)?,
                );
            }
        }
        Ok(true)
    }

    /// Takes up the compiled pipelines that an earlier start kept. A file that was damaged is left out.
    fn open_cache(&mut self, device: &Device) -> Result<bool, EngineError> {
        let Some(file) = &device.cache_file else { return Ok(true) };
        let kept = std::fs::read(file).ok();
        let data = kept.as_deref().and_then(|kept| {
            let (sum, data) = kept.split_first_chunk()?;
            (u64::from_le_bytes(*sum) == xxh3_64(data)).then_some(data)
        });
        // SAFETY: the data are, by their checksum, what `keep_cache` was given by a driver; each driver checks by the
        // header whether it was itself. The cache is destroyed in `drop`.
        unsafe {
            let Some(raw) = self.device.as_hal::<Api>() else { return Ok(false) };
            let descriptor = hal::PipelineCacheDescriptor { label: None, data };
            self.cache = Some(raw.create_pipeline_cache(&descriptor).map_err(|e| refused_as(&e))?);
        }
        Ok(true)
    }

    /// Keeps compiled pipelines for the next start. Failing to do so only costs time, so it is not an error.
    pub(super) fn keep_cache(&self, device: &Device) {
        // SAFETY: the cache is this device's and not destroyed before `drop`.
        let data = unsafe {
            let Some(raw) = self.device.as_hal::<Api>() else { return };
            self.cache.as_ref().and_then(|cache| raw.pipeline_cache_get_data(cache))
        };
        let (Some(file), Some(data)) = (&device.cache_file, data) else { return };
        let kept: Vec<u8> = xxh3_64(&data).to_le_bytes().into_iter().chain(data).collect();
        if std::fs::read(file).is_ok_and(|old| old == kept) {
            return;
        }
        let part = file.with_extension("part");
        let _ = std::fs::write(&part, kept).and_then(|()| std::fs::rename(&part, file));
    }

    /// Index of a kernel's pipeline, which is made if need be.
    pub(super) fn index(&mut self, level: &Level, kernel: Kernel) -> Result<usize, EngineError> {
        if let Some(found) = self.pipelines.iter().position(|(k, _)| *k == kernel) {
            return Ok(found);
        }
        let subgroups = kernel.subgroups(level);
        let constants = kernel.constants(level).into_iter().map(|(name, v)| (name.to_owned(), v)).collect();
        let Some(layout) = &self.layout else { return Err(destroyed()) };
        // SAFETY: the kernels are checked by naga here and written for no checks at run time, see `Pipelines`; modules
        // and pipelines are destroyed in `drop`.
        unsafe {
            let Some(raw) = self.device.as_hal::<Api>() else { return Err(destroyed()) };
            let module = match self.modules.entry((kernel.name(), subgroups)) {
                Entry::Occupied(made) => made.into_mut(),
                Entry::Vacant(place) => {
                    let descriptor = hal::ShaderModuleDescriptor {
                        label: None,
                        runtime_checks: wgpu::ShaderRuntimeChecks::unchecked(),
                    };
                    let input = hal::ShaderInput::Naga(checked(&kernel.source(subgroups))?);
                    place.insert(raw.create_shader_module(&descriptor, input).map_err(|e| refused_as(&e))?)
                }
            };
            let pipeline = raw.create_compute_pipeline(&hal::ComputePipelineDescriptor {
                label: None,
                layout,
                stage: hal::ProgrammableStage {
                    module: &*module,
                    entry_point: "main",
                    constants: &constants,
                    // Every kernel writes its workgroup memory before it reads it.
                    zero_initialize_workgroup_memory: false,
                },
                cache: self.cache.as_ref(),
            });
            self.pipelines.push((kernel, pipeline.map_err(|e| refused_as(&e))?));
        }
        Ok(self.pipelines.len() - 1)
    }

    /// Records dispatches, each after the one before; `indices` are of their pipelines. The submission must hold, before
    /// these commands, others that use the same buffers through wgpu: they keep the buffers alive and ready.
    pub(super) fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        dispatches: &[Dispatch],
        indices: &[usize],
    ) -> Result<(), EngineError> {
        let Some(layout) = &self.layout else { return Err(destroyed()) };
        let usage = hal::StateTransition {
            from: wgpu::BufferUses::STORAGE_READ_WRITE,
            to: wgpu::BufferUses::STORAGE_READ_WRITE,
        };
        // SAFETY: pipelines and groups have the one layout and live until `drop` has waited for the device; offsets
        // are entries of the table, sizes of dispatches were compared with the device's limits at load.
        unsafe {
            let arena = self.arena.as_hal::<Api>().ok_or_else(destroyed)?;
            encoder.as_hal_mut::<Api, _, _>(|raw| {
                let raw = raw.ok_or_else(destroyed)?;
                raw.begin_compute_pass(&hal::ComputePassDescriptor { label: None, timestamp_writes: None });
                let mut bound = None;
                for (dispatch, &index) in dispatches.iter().zip(indices) {
                    let barrier = hal::BufferBarrier { buffer: &*arena, usage: usage.clone() };
                    raw.transition_buffers(std::iter::once(barrier));
                    if bound != Some(index) {
                        raw.set_compute_pipeline(&self.pipelines[index].1);
                        bound = Some(index);
                    }
                    raw.set_bind_group(layout, 0, &self.groups[dispatch.shard], &[dispatch.params]);
                    raw.dispatch_workgroups([dispatch.groups[0], dispatch.groups[1], 1]);
                }
                raw.end_compute_pass();
                Ok(())
            })
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let wait = wgpu::PollType::Wait { submission_index: None, timeout: Some(LAST_WAIT) };
        if self.device.poll(wait).is_err() {
            return; // a device that hangs may still use them
        }
        // SAFETY: all are this device's, which has no work left, and nothing reaches them any more.
        unsafe {
            let Some(raw) = self.device.as_hal::<Api>() else { return };
            self.groups.drain(..).for_each(|group| raw.destroy_bind_group(group));
            self.pipelines.drain(..).for_each(|(_, pipeline)| raw.destroy_compute_pipeline(pipeline));
            self.modules.drain().for_each(|(_, module)| raw.destroy_shader_module(module));
            self.cache.take().into_iter().for_each(|cache| raw.destroy_pipeline_cache(cache));
            self.layout.take().into_iter().for_each(|layout| raw.destroy_pipeline_layout(layout));
            self.bindings.take().into_iter().for_each(|bindings| raw.destroy_bind_group_layout(bindings));
        }
    }
}

/// A kernel's source as naga has checked it.
fn checked(source: &str) -> Result<hal::NagaShader, EngineError> {
    let module =
        wgpu::naga::front::wgsl::parse_str(source).map_err(|e| EngineError::Gpu(e.emit_to_string(source)))?;
    let info = Validator::new(ValidationFlags::all(), CAPABILITIES)
        .validate(&module)
        .map_err(|e| EngineError::Gpu(e.emit_to_string(source)))?;
    Ok(hal::NagaShader { module: Cow::Owned(module), info, debug_source: None })
}

fn refused(error: hal::DeviceError) -> EngineError {
    match error {
        hal::DeviceError::OutOfMemory => EngineError::OutOfMemory(error.to_string()),
        other => EngineError::Lost(other.to_string()),
    }
}

fn refused_as(error: &dyn std::fmt::Display) -> EngineError {
    EngineError::Gpu(error.to_string())
}

fn destroyed() -> EngineError {
    EngineError::Lost("its buffers are gone".into())
}
