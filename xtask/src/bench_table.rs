//! The figures as a table for people.

use crate::bench::{Figure, Figures};

/// A row's name and where its figures are.
type Measurement = (&'static str, fn(&Figures) -> Figure);

/// One row per measurement, one column per size; median and, behind the stroke, the worst.
pub fn render(all: &[Figures], runs: usize) -> String {
    let mut rows = vec![vec![format!("ms, median / worst of {runs}")]];
    rows[0].extend(all.iter().map(|size| format!("{} MB", size.megabytes)));
    let measurements: [Measurement; 8] = [
        ("memcpy of that size", |size| size.memcpy),
        ("durable sequential write of that size", |size| size.durable_write),
        ("pause, by the program's own clock", |size| size.pause),
        ("checkpoint, left running: whole command", |size| size.save),
        ("checkpoint, killed: whole command", |size| size.save_and_kill),
        ("resume from the disk: until the first instruction", |size| size.awake),
        ("resume from the page cache: the same", |size| size.awake_cached),
        ("one thread reads the image into new memory", |size| size.fresh_read),
    ];
    for (name, pick) in measurements {
        let mut row = vec![name.to_owned()];
        row.extend(
            all.iter().map(|size| format!("{:.1} / {:.1}", pick(size).median_ms, pick(size).worst_ms)),
        );
        rows.push(row);
    }
    let mut row = vec!["image, bytes".to_owned()];
    row.extend(all.iter().map(|size| size.image_bytes.to_string()));
    rows.push(row);
    lines(&rows).join("\n")
}

/// Pads every column to its widest cell; the first row is the heading.
pub fn lines(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(column, (cell, &width))| {
                if column == 0 { format!(" {cell:<width$} |") } else { format!(" {cell:>width$} |") }
            });
            format!("|{}", cells.collect::<String>())
        })
        .collect();
    let rule: String = widths.iter().map(|&width| format!("{}|", "-".repeat(width + 2))).collect();
    lines.insert(1, format!("|{rule}"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_every_measurement() {
        let figure = Figure { median_ms: 1.25, worst_ms: 2.5 };
        let size = Figures {
            megabytes: 16,
            memcpy: figure,
            durable_write: figure,
            pause: figure,
            save: figure,
            save_and_kill: figure,
            awake: figure,
            awake_cached: figure,
            fresh_read: figure,
            image_bytes: 4711,
        };
        let text = render(&[size], 7);
        assert_eq!(text.matches("1.2 / 2.5").count(), 8, "{text}");
        assert!(text.contains("16 MB") && text.contains("4711"), "{text}");
    }
}
