//! Comparing results: a table of worst differences that is printed, and that fails on NaN.

/// The largest absolute difference; NaN as soon as one number is NaN on either side.
///
/// # Panics
/// When the two have different lengths.
pub fn worst(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len(), "lengths differ");
    let differences = got.iter().zip(expected).map(|(g, e)| (g - e).abs());
    differences.fold(0.0, |worst, d| if d <= worst || worst.is_nan() { worst } else { d })
}

/// Named comparisons with their tolerances. What was measured is printed when it is finished.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    worst: f32,
    tolerance: f32,
    compared: usize,
}

impl Table {
    /// Compares numbers under a name; the same name again keeps the worst.
    pub fn add(&mut self, name: &str, tolerance: f32, got: &[f32], expected: &[f32]) {
        let found = worst(got, expected);
        let row = match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row,
            None => {
                let row = Row { name: name.to_owned(), worst: 0.0, tolerance, compared: 0 };
                self.rows.push(row);
                self.rows.last_mut().expect("a row was just added")
            }
        };
        if !(found <= row.worst || row.worst.is_nan()) {
            row.worst = found;
        }
        row.compared += got.len();
    }

    /// Prints the table.
    ///
    /// # Panics
    /// When a difference is not within its tolerance, or nothing was compared.
    pub fn finish(self, title: &str) {
        assert!(self.rows.iter().any(|row| row.compared > 0), "{title}: nothing was compared");
        println!("{title}");
        for row in &self.rows {
            println!(
                "  {:48} worst {:9.2e} of {:7.0e}   {} numbers",
                row.name, row.worst, row.tolerance, row.compared
            );
        }
        let within = |row: &Row| row.worst <= row.tolerance; // false for NaN
        let failed: Vec<&Row> = self.rows.iter().filter(|row| !within(row)).collect();
        assert!(failed.is_empty(), "{title}: {failed:#?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_is_the_worst_difference() {
        assert!(worst(&[1.0, f32::NAN, 5.0], &[0.0, 0.0, 0.0]).is_nan());
        assert!(worst(&[1.0, 2.0], &[f32::NAN, 0.0]).is_nan());
        assert_eq!(worst(&[1.0, 2.5], &[1.0, 2.0]), 0.5);
    }

    #[test]
    #[should_panic(expected = "NaN")]
    fn nan_fails() {
        let mut table = Table::default();
        table.add("row", 1.0, &[f32::NAN], &[0.0]);
        table.add("row", 1.0, &[0.0], &[0.0]);
        table.finish("nan");
    }

    #[test]
    #[should_panic(expected = "nothing was compared")]
    fn an_empty_table_fails() {
        Table::default().finish("empty");
    }
}
