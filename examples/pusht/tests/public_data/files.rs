//! The public Push-T demonstrations, where they lie beside the workspace. They are never part of it.

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use refrain_pusht::State;

/// `name` among the Push-T files: under `$REFRAIN_SHARED` or, without it, `shared/` beside the workspace.
/// `None`, with a loud line on standard error, where it is not there.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("REFRAIN_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let path = shared.join("pusht").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED, NOTHING WAS COMPARED: {} is not there (set REFRAIN_SHARED)", path.display());
    None
}

/// One human demonstration: `actions[i]` leads from `states[i]` to `states[i + 1]`; both have the same length.
pub(crate) struct Demonstration {
    /// Recorded states, 10 per second.
    pub(crate) states: Vec<State>,
    /// The pusher's targets (x, y), pixels.
    pub(crate) actions: Vec<[f64; 2]>,
}

/// All demonstrations, or `None` where the file is not there.
pub(crate) fn demonstrations() -> Option<Vec<Demonstration>> {
    let path = path("pusht_lowdim_demos.npz")?;
    Some(read_demonstrations(path).expect("a readable pusht_lowdim_demos.npz"))
}

fn read_demonstrations(path: PathBuf) -> Result<Vec<Demonstration>, Box<dyn Error>> {
    let mut archive = zip::ZipArchive::new(File::open(path)?)?;
    let states = floats(&member(&mut archive, "state.npy")?)?;
    let actions = floats(&member(&mut archive, "action.npy")?)?;
    let ends: Vec<usize> = npy_body(&member(&mut archive, "episode_ends.npy")?, "<i8")?
        .chunks_exact(8)
        .map(|bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes")) as usize)
        .collect();
    let mut start = 0;
    let mut demonstrations = Vec::new();
    for end in ends {
        let states = states[5 * start..5 * end]
            .chunks_exact(5)
            .map(|s| State { pusher: [s[0], s[1]], block: [s[2], s[3]], angle: s[4] })
            .collect();
        let actions = actions[2 * start..2 * end].chunks_exact(2).map(|a| [a[0], a[1]]).collect();
        demonstrations.push(Demonstration { states, actions });
        start = end;
    }
    Ok(demonstrations)
}

/// The bytes of a member of a zip archive.
pub(crate) fn member(archive: &mut zip::ZipArchive<File>, name: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = Vec::new();
    archive.by_name(name)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn floats(npy: &[u8]) -> Result<Vec<f64>, Box<dyn Error>> {
    let body = npy_body(npy, "<f4")?;
    Ok(body.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes")))).collect())
}

/// The data of a version 1 `.npy` file of the given element type, in C order.
fn npy_body<'a>(npy: &'a [u8], dtype: &str) -> Result<&'a [u8], Box<dyn Error>> {
    if npy.get(..8) != Some(b"\x93NUMPY\x01\x00".as_slice()) {
        return Err("not a version 1 .npy file".into());
    }
    let length = usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    let header = std::str::from_utf8(npy.get(10..10 + length).ok_or("a truncated .npy header")?)?;
    if !header.contains(&format!("'descr': '{dtype}'")) || !header.contains("'fortran_order': False") {
        return Err(format!("expected {dtype} in C order, got {header}").into());
    }
    Ok(&npy[10 + length..])
}
