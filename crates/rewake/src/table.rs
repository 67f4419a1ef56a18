//! Tables: with lines on a terminal, aligned columns for other programs and for paper.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, TableStyle};

/// A line between header and rows is enough.
const RULED: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Which side of a column its content keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table under construction.
pub struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[(&'static str, Side)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text that ends with a newline.
    pub fn text(&self, terminal: bool) -> String {
        if terminal { self.ruled() } else { self.aligned() }
    }

    fn ruled(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(RULED);
        // A terminal that does not know its size says 0; in so little room, lines that the terminal breaks are better.
        if table.width().is_some_and(|columns| columns >= 40) {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        table.set_header(self.columns.iter().map(|(name, _)| *name));
        for row in &self.rows {
            table.add_row(row);
        }
        for (column, (_, side)) in table.column_iter_mut().zip(&self.columns) {
            column.set_cell_alignment(match side {
                Side::Left => CellAlignment::Left,
                Side::Right => CellAlignment::Right,
            });
        }
        format!("{table}\n")
    }

    fn aligned(&self) -> String {
        let header = self.columns.iter().map(|(name, _)| name.to_uppercase()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&header).chain(&self.rows).collect();
        let width = |column: usize| {
            lines
                .iter()
                .filter_map(|line| line.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for line in lines {
            let mut row = String::new();
            for ((cell, width), (_, side)) in line.iter().zip(&widths).zip(&self.columns) {
                let cell = match side {
                    Side::Left => format!("{cell:width$}  "),
                    Side::Right => format!("{cell:>width$}  "),
                };
                row.push_str(&cell);
            }
            text.push_str(row.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_keep_to_their_sides() {
        let mut table = Table::new(&[("Name", Side::Left), ("Bytes", Side::Right), ("Kind", Side::Left)]);
        table.row(["a", "1", "x"].map(str::to_owned));
        table.row(["longer", "123456", ""].map(str::to_owned));
        let expected = "NAME     BYTES  KIND\na            1  x\nlonger  123456\n";
        assert_eq!(table.text(false), expected);
        assert!(table.text(true).contains("longer"));
    }
}
