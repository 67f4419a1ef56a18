//! `rewake show`: what is in an image.

mod doing;

use std::path::Path;
use std::process::ExitCode;

use rewake_image::Image;
use rewake_image::describe::{Description, describe};
use serde_json::{Value, json};

use crate::args::Show;
use crate::failure::Failure;
use crate::format::{count, date, plain, size};
use crate::output::{self, Paint};
use crate::place;
use crate::table::{Side, Table};
use crate::waiting;

/// Shows an image.
pub fn run(arguments: &Show) -> Result<ExitCode, Failure> {
    let dir = place::image(&arguments.dir)?;
    waiting::around_image(&dir);
    let description = describe(&dir)?;
    let doing = activities(&dir)?;
    let text = if arguments.json {
        output::json(&value(&dir, &description, &doing))
    } else {
        let page = Page { paint: Paint::for_stdout(&arguments.common), terminal: output::to_terminal() };
        page.text(&dir, &description, &doing)
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What each thread was doing, in the order of the description.
fn activities(dir: &Path) -> Result<Vec<String>, Failure> {
    let image = Image::open(dir)?;
    Ok(image.process.threads.iter().map(|thread| doing::doing(&thread.registers)).collect())
}

/// The description for scripts. Processes are a list: an image of a whole tree will have more than one.
fn value(dir: &Path, description: &Description, doing: &[String]) -> Value {
    let mut value = serde_json::to_value(description).expect("a description has string keys and integers");
    let mut process = value["process"].take();
    if let Some(threads) = process["threads"].as_array_mut() {
        for (thread, doing) in threads.iter_mut().zip(doing) {
            thread["doing"] = json!(doing);
        }
    }
    if let Some(fields) = value.as_object_mut() {
        fields.remove("process");
    }
    value["image"] = json!(dir.to_string_lossy());
    value["processes"] = json!([process]);
    value
}

struct Page {
    paint: Paint,
    terminal: bool,
}

impl Page {
    fn text(&self, dir: &Path, description: &Description, doing: &[String]) -> String {
        [
            self.image(dir, description),
            self.process(description),
            self.threads(description, doing),
            self.memory(description),
            self.files(description),
            self.requirements(description),
        ]
        .join("\n")
    }

    fn section(&self, title: &str, facts: &[(&str, String)]) -> String {
        let mut text = format!("{}\n", self.paint.heading(title));
        for (name, value) in facts {
            text.push_str(&format!("  {name:9} {}\n", plain(value.as_bytes())));
        }
        text
    }

    fn table(&self, title: &str, table: &Table) -> String {
        format!("{}\n{}", self.paint.heading(title), table.text(self.terminal))
    }

    fn image(&self, dir: &Path, image: &Description) -> String {
        let host = &image.host;
        self.section(
            &format!("Image {}", plain(dir.as_os_str().as_encoded_bytes())),
            &[
                (
                    "created",
                    format!(
                        "{} by rewake {}, format {}",
                        date(image.created_unix_ns),
                        image.tool_version,
                        image.format_version
                    ),
                ),
                ("host", format!("{}, Linux {}, {}", host.hostname, host.kernel_release, host.architecture)),
                ("size", size(image.records_bytes.saturating_add(image.pages_bytes))),
                ("memory", format!("{}, compression {}", size(image.stored_bytes), image.compression)),
                ("contents", contents(image.file_level).to_owned()),
            ],
        )
    }

    fn process(&self, image: &Description) -> String {
        let process = &image.process;
        self.section(
            &format!("Process {}", process.pid),
            &[
                ("command", process.command.clone()),
                ("program", process.exe.clone()),
                ("folder", process.cwd.clone()),
                ("parent", process.ppid.to_string()),
            ],
        )
    }

    fn threads(&self, image: &Description, doing: &[String]) -> String {
        let mut table = Table::new(&[("Tid", Side::Right), ("Name", Side::Left), ("Doing", Side::Left)]);
        for (thread, doing) in image.process.threads.iter().zip(doing) {
            table.row([thread.tid.to_string(), plain(thread.name.as_bytes()), doing.clone()]);
        }
        self.table(&count(image.process.threads.len(), "thread", "threads"), &table)
    }

    fn memory(&self, image: &Description) -> String {
        let mut table = Table::new(&[
            ("Kind", Side::Left),
            ("Mappings", Side::Right),
            ("Mapped", Side::Right),
            ("In image", Side::Right),
        ]);
        for memory in &image.process.memory {
            let sizes = [memory.mapped_bytes, memory.stored_bytes].map(size);
            let [mapped, stored] = sizes;
            table.row([memory.kind.label().to_owned(), memory.mappings.to_string(), mapped, stored]);
        }
        let title = format!(
            "Memory: {} mapped, {} in the image",
            size(image.mapped_bytes()),
            size(image.stored_bytes)
        );
        self.table(&title, &table)
    }

    fn files(&self, image: &Description) -> String {
        let files = &image.process.files;
        if files.is_empty() {
            return self.section("No open files", &[]);
        }
        let mut table = Table::new(&[
            ("Fd", Side::Right),
            ("Kind", Side::Left),
            ("Access", Side::Left),
            ("Position", Side::Right),
            ("Name", Side::Left),
        ]);
        for file in files {
            let position = file.position.map_or_else(|| "-".to_owned(), |position| position.to_string());
            let name = plain(file.name.as_bytes());
            table.row([file.fd.to_string(), file.kind.to_owned(), file.access.to_owned(), position, name]);
        }
        self.table(&count(files.len(), "open file", "open files"), &table)
    }

    fn requirements(&self, image: &Description) -> String {
        let cpu = &image.cpu;
        self.section(
            "The CPU that wakes it must have",
            &[
                ("features", cpu.features.join(" ")),
                ("state", format!("components {:#x}, {} bytes per thread", cpu.xcr0, cpu.xsave_size)),
                ("made on", format!("{}, {}", cpu.vendor, cpu.model)),
            ],
        )
    }
}

fn contents(level: u32) -> &'static str {
    match level {
        0 => "no files: they must be where they were",
        1 => "files open for writing",
        2 => "all open regular files",
        _ => "all open and mapped files: self-contained",
    }
}
