//! Observations from a numpy archive: `obs_raw` [B,To,O], little-endian f32 or f64, row-major.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use zip::ZipArchive;

/// The array's name.
const NAME: &str = "obs_raw";
/// Most bytes of it.
const MAX_BYTES: u64 = 1 << 30;
/// What an array of format 1 begins with.
const MAGIC: &[u8; 8] = b"\x93NUMPY\x01\x00";

/// The observations of an archive, each of `[To, O]` numbers.
pub(super) fn observations(path: &Path, shape: [usize; 2]) -> Result<Vec<f32>, String> {
    let shown = path.display();
    let file = File::open(path).map_err(|e| format!("{shown}: {e}"))?;
    let mut archive =
        ZipArchive::new(file).map_err(|e| format!("{shown}: {e}; expected what numpy.savez wrote"))?;
    let entry = archive
        .by_name(&format!("{NAME}.npy"))
        .map_err(|e| format!("{shown}: array {NAME}: {e}; save it with numpy.savez(FILE, {NAME}=..)"))?;
    let mut bytes = Vec::new();
    entry.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| format!("{shown}: array {NAME}: {e}"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("{shown}: array {NAME}: expected at most {MAX_BYTES} bytes"));
    }
    array(&bytes, shape).map_err(|e| format!("{shown}: array {NAME}: {e}"))
}

/// The numbers of a whole `.npy` file with shape `[B, To, O]`.
fn array(bytes: &[u8], [to, o]: [usize; 2]) -> Result<Vec<f32>, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("expected numpy's array format 1")?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or("is cut off")?;
    let (header, data) =
        rest.split_at_checked(usize::from(u16::from_le_bytes(*length))).ok_or("is cut off")?;
    let header: String = String::from_utf8_lossy(header).chars().filter(|c| !c.is_whitespace()).collect();
    let value = |key: &str| {
        let at = header.find(&format!("'{key}':"))? + key.len() + 3;
        let rest = &header[at..];
        let end = rest.find(if rest.starts_with('(') { ')' } else { ',' })?;
        Some(rest[..end].trim_matches(['\'', '(', ','].as_slice()).to_owned())
    };
    if value("fortran_order").as_deref() != Some("False") {
        return Err("expected row-major order; save numpy.ascontiguousarray of it".into());
    }
    let shape = value("shape").unwrap_or_default();
    let sizes: Vec<usize> = shape.split(',').filter_map(|s| s.parse().ok()).collect();
    if sizes.len() != 3 || sizes[1..] != [to, o] || sizes[0] == 0 {
        return Err(format!("expected shape (B, {to}, {o}), got ({shape})"));
    }
    let numbers: Vec<f32> = match value("descr").as_deref() {
        Some("<f4") => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Some("<f8") => data
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32)
            .collect(),
        other => return Err(format!("expected <f4 or <f8, got {}", other.unwrap_or("nothing"))),
    };
    if sizes[0].checked_mul(to * o) != Some(numbers.len()) {
        return Err(format!("expected {sizes:?} numbers, got {}", numbers.len()));
    }
    if let Some(i) = numbers.iter().position(|v| !v.is_finite()) {
        return Err(format!("number {i} is {}; expected finite numbers", numbers[i]));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `numpy.save` of `numpy.arange(8, dtype=descr).reshape(2, 2, 2)` writes (numpy 2, the format of NEP 1).
    fn npy(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut bytes = MAGIC.to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn arrays_are_read_and_bad_ones_named() {
        let single: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let double: Vec<u8> = (0..8).flat_map(|i| f64::from(i).to_le_bytes()).collect();
        let expected: Vec<f32> = (0..8).map(|i| i as f32).collect();
        assert_eq!(array(&npy("<f4", "False", "(2, 2, 2)", &single), [2, 2]).unwrap(), expected);
        assert_eq!(array(&npy("<f8", "False", "(2, 2, 2)", &double), [2, 2]).unwrap(), expected);
        let nan: Vec<u8> = [f32::NAN; 8].iter().flat_map(|v| v.to_le_bytes()).collect();
        for (bytes, said) in [
            (npy(">f4", "False", "(2, 2, 2)", &single), "<f4 or <f8"),
            (npy("<f4", "True", "(2, 2, 2)", &single), "row-major"),
            (npy("<f4", "False", "(4, 2)", &single), "shape (B, 2, 2)"),
            (npy("<f4", "False", "(3, 2, 2)", &single), "got 8"),
            (npy("<f4", "False", "(2, 2, 2)", &nan), "finite"),
            (b"\x93NUMPY\x02".to_vec(), "format 1"),
            (b"\x93NUMPY\x01\x00\xff\xff".to_vec(), "cut off"),
        ] {
            let error = array(&bytes, [2, 2]).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        let whole = npy("<f4", "False", "(2, 2, 2)", &single);
        (0..whole.len()).for_each(|cut| assert!(array(&whole[..cut], [2, 2]).is_err()));
    }
}
