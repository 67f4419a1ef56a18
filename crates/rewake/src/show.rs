//! `rewake show`: what is in an image.

mod doing;

use std::path::Path;
use std::process::ExitCode;

use rewake_image::Image;
use rewake_image::describe::{Description, ProcessDescription, describe};
use rewake_image::records::Process;
use serde_json::{Value, json};

use crate::args::Show;
use crate::failure::Failure;
use crate::format::{count, date, plain, size};
use crate::output::{self, Paint};
use crate::place;
use crate::table::{Side, Table};
use crate::waiting;

/// By process, what its threads were doing.
type Doing = Vec<Vec<String>>;

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

/// What each thread of each process was doing, in the order of the description.
fn activities(dir: &Path) -> Result<Doing, Failure> {
    let of =
        |process: &Process| process.threads.iter().map(|thread| doing::doing(&thread.registers)).collect();
    Ok(Image::open(dir)?.processes.iter().map(of).collect())
}

/// The description for scripts.
fn value(dir: &Path, description: &Description, doing: &[Vec<String>]) -> Value {
    let mut value = serde_json::to_value(description).expect("a description has string keys and integers");
    let processes = value["processes"].as_array_mut().into_iter().flatten();
    for (process, doing) in processes.zip(doing) {
        let threads = process["threads"].as_array_mut().into_iter().flatten();
        for (thread, doing) in threads.zip(doing) {
            thread["doing"] = json!(doing);
        }
    }
    value["image"] = json!(dir.to_string_lossy());
    value
}

struct Page {
    paint: Paint,
    terminal: bool,
}

impl Page {
    fn text(&self, dir: &Path, description: &Description, doing: &[Vec<String>]) -> String {
        let mut parts = vec![self.image(dir, description)];
        if description.processes.len() > 1 {
            parts.push(self.processes(description));
        }
        if !description.ipc.is_empty() {
            parts.push(self.ipc(description));
        }
        for (process, doing) in description.processes.iter().zip(doing) {
            parts.push(self.process(process));
            // Nothing else is left of one that ended.
            if process.exit_status.is_none() {
                parts.extend([self.threads(process, doing), self.memory(process), self.files(process)]);
            }
        }
        parts.push(self.requirements(description));
        parts.join("\n")
    }

    fn processes(&self, image: &Description) -> String {
        let mut table = Table::new(&[
            ("Pid", Side::Right),
            ("Parent", Side::Right),
            ("Threads", Side::Right),
            ("In image", Side::Right),
            ("Command", Side::Left),
        ]);
        for process in &image.processes {
            let stored = process.memory.iter().map(|memory| memory.stored_bytes).sum();
            let ended = process.exit_status.map(|_| "(ended, not waited for yet)".to_owned());
            table.row([
                process.pid.to_string(),
                process.ppid.to_string(),
                process.threads.len().to_string(),
                size(stored),
                ended.unwrap_or_else(|| plain(process.command.as_bytes())),
            ]);
        }
        self.table(&count(image.processes.len(), "process", "processes"), &table)
    }

    fn ipc(&self, image: &Description) -> String {
        let mut table = Table::new(&[
            ("Kind", Side::Left),
            ("Id", Side::Right),
            ("Key", Side::Right),
            ("Owner", Side::Right),
            ("Mode", Side::Right),
            ("Holds", Side::Left),
        ]);
        for object in &image.ipc {
            let holds = match object.kind {
                "segment" => size(object.amount),
                "semaphores" => format!("{} semaphores", object.amount),
                _ => format!("{} messages", object.amount),
            };
            table.row([
                object.kind.to_owned(),
                object.id.to_string(),
                format!("{:#x}", object.key),
                object.uid.to_string(),
                format!("{:o}", object.mode),
                holds,
            ]);
        }
        self.table(&count(image.ipc.len(), "System V object", "System V objects"), &table)
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
                ("shared", size(image.shared_bytes)),
                ("contents", contents(image.file_level).to_owned()),
            ],
        )
    }

    fn process(&self, process: &ProcessDescription) -> String {
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

    fn threads(&self, process: &ProcessDescription, doing: &[String]) -> String {
        let mut table = Table::new(&[("Tid", Side::Right), ("Name", Side::Left), ("Doing", Side::Left)]);
        for (thread, doing) in process.threads.iter().zip(doing) {
            table.row([thread.tid.to_string(), plain(thread.name.as_bytes()), doing.clone()]);
        }
        self.table(&count(process.threads.len(), "thread", "threads"), &table)
    }

    fn memory(&self, process: &ProcessDescription) -> String {
        let mut table = Table::new(&[
            ("Kind", Side::Left),
            ("Mappings", Side::Right),
            ("Mapped", Side::Right),
            ("In image", Side::Right),
        ]);
        let (mut all_mapped, mut all_stored) = (0, 0);
        for memory in &process.memory {
            (all_mapped, all_stored) = (all_mapped + memory.mapped_bytes, all_stored + memory.stored_bytes);
            let sizes = [memory.mapped_bytes, memory.stored_bytes].map(size);
            let [mapped, stored] = sizes;
            table.row([memory.kind.label().to_owned(), memory.mappings.to_string(), mapped, stored]);
        }
        let title = format!("Memory: {} mapped, {} in the image", size(all_mapped), size(all_stored));
        self.table(&title, &table)
    }

    fn files(&self, process: &ProcessDescription) -> String {
        let files = &process.files;
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
