//! Records that make no sense are refused, and the message says which and why.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rewake_image::describe::{Description, MemoryKind};
use rewake_image::records::open_file::Kind;
use rewake_image::records::vma::Backing;
use rewake_image::records::{Device, Extent, FileSystemContext, Limit, Process, Thread, Vma};
use rewake_image::{Image, ImageError, check, sample};

/// The message for the sample, changed.
fn refusal(change: impl FnOnce(&mut Image)) -> String {
    let mut image = sample::image();
    change(&mut image);
    let error = image.check().unwrap_err();
    assert!(matches!(error, ImageError::Invalid { .. }), "{error}");
    assert!(image.encode().is_err(), "what is refused is not written");
    error.to_string()
}

#[track_caller]
fn refused(wanted: &str, change: impl FnOnce(&mut Image)) {
    let message = refusal(change);
    assert!(message.contains(wanted), "{message:?} does not contain {wanted:?}");
}

fn vmas(image: &mut Image) -> &mut Vec<Vma> {
    &mut image.processes[0].memory.as_mut().unwrap().vmas
}

fn pages(image: &mut Image) -> &mut Vec<Extent> {
    &mut image.processes[0].memory.as_mut().unwrap().pages
}

#[test]
fn the_sample_makes_sense() {
    sample::image().check().unwrap();
}

#[test]
fn manifest_and_stream() {
    refused("no host", |image| image.manifest.host = None);
    refused("no cpu", |image| image.manifest.cpu = None);
    refused("page size 65536", |image| image.manifest.page_size = 65_536);
    refused("file level 4", |image| image.manifest.file_level = 4);
    refused("root_pid 1 is not", |image| image.manifest.root_pid = 1);
    refused("xsave component 2", |image| {
        image.manifest.cpu.as_mut().unwrap().components[0].offset = u32::MAX
    });
    refused("unknown compression 9", |image| image.stream.compression = 9);
    refused("block size 4096", |image| image.stream.block_size = 4096);
    refused("0 checksums for 1 blocks", |image| image.stream.checksums.clear());
    refused("although not compressed", |image| image.stream.stored_lengths.push(1));
    refused("0 stored lengths for 1 blocks", |image| image.stream.compression = 2);
    refused("file length 1", |image| image.stream.file_length = 1);
    refused("whole number of pages", |image| image.stream.stream_length -= 1);
    refused("block 0 of 24576 bytes is stored in 24577", |image| {
        image.stream.compression = 1;
        image.stream.stored_lengths = vec![24_577];
    });
}

#[test]
fn process() {
    let with =
        |wanted: &str, change: fn(&mut Process)| refused(wanted, |image| change(&mut image.processes[0]));
    with("pid 0 is impossible", |process| process.pid = 0);
    with("sid -1 is impossible", |process| process.sid = -1);
    with("exe \"\" is no absolute path", |process| process.exe.clear());
    with("cwd \"here\" is no absolute path", |process| process.cwd = b"here".to_vec());
    with("zero byte", |process| process.root = b"/a\0b".to_vec());
    with("cwd has 5000 bytes", |process| process.cwd = vec![b'/'; 5000]);
    with("comm \"a name too long!\"", |process| process.comm = b"a name too long!".to_vec());
    with("umask 0o1000", |process| process.umask = 0o1000);
    with("unknown resource 16", |process| process.limits = vec![Limit { resource: 16, soft: 0, hard: 0 }]);
    with("soft 2 above hard 1", |process| process.limits = vec![Limit { resource: 0, soft: 2, hard: 1 }]);
    with("unknown interval timer 3", |process| process.interval_timers[0].which = 3);
    with("signal 9 cannot have an action", |process| process.actions[0].signal = 9);
    with("signal 65 cannot have an action", |process| process.actions[0].signal = 65);
    with("siginfo of 127 bytes", |process| process.pending[0].siginfo.truncate(127));
    with("pending signal Some(0)", |process| process.pending[0].siginfo[0] = 0);
    with("no credentials", |process| process.credentials = None);
    with("3 user ids", |process| process.credentials.as_mut().unwrap().uids.truncate(3));
    with("65537 groups", |process| process.credentials.as_mut().unwrap().groups = vec![0; 65_537]);
}

#[test]
fn threads() {
    let with =
        |wanted: &str, change: fn(&mut Process)| refused(wanted, |image| change(&mut image.processes[0]));
    with("0 threads", |process| process.threads.clear());
    with("100001 threads", |process| process.threads = vec![process.threads[0].clone(); 100_001]);
    with("thread 4711 comes after 4711", |process| process.threads[1].tid = 4711);
    with("no thread has the id of the process", |process| drop(process.threads.remove(0)));
    with("thread 4712: 26 registers", |process| process.threads[1].registers.truncate(26));
    with("575 bytes", |process| process.threads[0].xstate.truncate(575));
    with("65537 bytes", |process| process.threads[0].xstate = vec![0; 65_537]);
    with("siginfo of 0 bytes", |process| process.threads[0].pending[0].siginfo.clear());
    with("parent death signal 65", |process| process.threads[0].parent_death_signal = 65);
    with("CPU mask of 8193 bytes", |process| process.threads[0].affinity = vec![0; 8193]);
}

#[test]
fn mappings() {
    refused("has no memory", |image| image.processes[0].memory = None);
    refused("no fields", |image| image.processes[0].memory.as_mut().unwrap().fields = None);
    refused("brk from", |image| image.processes[0].memory.as_mut().unwrap().fields.as_mut().unwrap().brk = 1);
    refused("vector of 15 bytes", |image| image.processes[0].memory.as_mut().unwrap().auxv = vec![0; 15]);
    refused("Process, exe: no identity", |image| image.processes[0].memory.as_mut().unwrap().exe = None);
    refused("mapping 0 (0x55d000000001", |image| vmas(image)[0].start += 1);
    refused("empty", |image| vmas(image)[0].end = vmas(image)[0].start);
    refused("above the end", |image| vmas(image).last_mut().unwrap().end = check::TASK_SIZE + 4096);
    refused("begins below", |image| vmas(image).swap(0, 1));
    refused("unknown backing 77", |image| vmas(image)[0].backing = 77);
    refused("refers to object 1", |image| vmas(image)[0].object = 1);
    refused("refers to object 2", |image| vmas(image)[4].object = 2);
    refused("maps up to 0x3000 of an object of 0x2000 bytes", |image| vmas(image)[4].offset = 0x1000);
    refused("refers to no shared memory", |image| vmas(image)[2].shared = true);
    refused("protection 0x8", |image| vmas(image)[0].protection = 8);
    refused("offset 0xfffffffffffff000", |image| vmas(image)[0].offset = !4095);
    refused("name", |image| vmas(image)[3].name = vec![b'n'; 80]);
}

#[test]
fn extents() {
    refused("not whole pages", |image| pages(image)[0].address += 1);
    refused("not whole pages", |image| pages(image)[0].length = 0);
    refused("not whole pages", |image| pages(image)[0].stream_offset = 1);
    refused("begins below", |image| pages(image).swap(0, 1));
    refused("too long", |image| pages(image)[3].length = !4095);
    refused("one private mapping", |image| pages(image)[1].length += 4096);
    refused("one private mapping", |image| pages(image)[0].address -= 4096);
    refused("an extent begins at 0x3000, 0x1000 expected", |image| {
        pages(image).retain(|extent| extent.length == 4096)
    });
    refused("the stream has 0x6000", |image| image.shared_memory[0].pages.clear());
    refused("an extent begins at", |image| pages(image)[3].stream_offset = 0);
    refused("an object of 0x1000 bytes", |image| image.shared_memory[0].size = 4096);
    refused("a size of 18446744073709551615", |image| image.shared_memory[0].size = u64::MAX);
    refused("id 1 comes after 1", |image| image.shared_memory.push(image.shared_memory[0].clone()));
}

#[test]
fn pages_belong_to_private_mappings_only() {
    for (backing, shared) in [(Backing::Vdso, false), (Backing::Vvar, false), (Backing::File, true)] {
        refused("one private mapping", |image| {
            let vma = &mut vmas(image)[1];
            (vma.backing, vma.shared) = (backing.into(), shared);
        });
    }
}

/// `/dev/null` in the sample.
fn device(image: &mut Image) -> &mut Device {
    match image.open_files[1].kind.as_mut().unwrap() {
        Kind::Device(device) => device,
        kind => panic!("{kind:?}"),
    }
}

#[test]
fn files() {
    refused("MappedFile 0: no identity", |image| image.mapped_files[0].identity = None);
    refused("no absolute path", |image| image.mapped_files[0].identity.as_mut().unwrap().path.clear());
    refused("nanoseconds", |image| image.mapped_files[0].identity.as_mut().unwrap().mtime_ns = u32::MAX);
    refused("Pipe 1: 11 bytes in 10", |image| image.pipes[0].capacity = 10);
    refused("refers to pipe 1, which is not there", |image| image.pipes.clear());
    for (rdev, named) in [(0x800, "8:0"), (0x101, "1:1"), (0x501, "5:1"), (0x1_0103, "257:3"), (0, "0:0")] {
        refused(&format!("OpenFile 2: no device {named}"), |image| device(image).rdev = rdev);
    }
    let allowed = [0x103, 0x105, 0x107, 0x108, 0x109, 0x500].map(|rdev| {
        let mut image = sample::image();
        device(&mut image).rdev = rdev;
        image.check().is_ok()
    });
    assert_eq!(allowed, [true; 6]);
    refused("OpenFile 1: of unknown kind", |image| image.open_files[0].kind = None);
    refused("id 1 comes after 1", |image| image.open_files[1].id = 1);
    refused("descriptor 5 refers to file 6", |image| drop(image.open_files.pop()));
    refused("descriptor 0 comes after 0", |image| image.processes[0].descriptors[1].fd = 0);
    refused("descriptor -1 is impossible", |image| image.processes[0].descriptors[0].fd = -1);
    refused("lock through descriptor 77", |image| image.processes[0].locks[0].fd = 77);
    refused("lock of unknown type 77", |image| image.processes[0].locks[0].r#type = 77);
    refused("position 18446744073709551615", |image| image.processes[0].locks[0].start = u64::MAX);
}

/// A child of the sample's process with one thread and the same memory, or a copy of it.
fn child(image: &Image, memory_of: Option<i32>) -> Process {
    let mut child = image.processes[0].clone();
    (child.pid, child.ppid) = (child.pid + 100, child.pid);
    child.threads.truncate(1);
    child.threads[0].tid = child.pid;
    child.memory_of = memory_of;
    child.memory = child.memory.filter(|_| memory_of.is_none());
    child
}

fn zombie(image: &Image) -> Process {
    Process { exit_status: Some(256), memory: None, threads: Vec::new(), ..child(image, Some(4711)) }
}

#[test]
fn trees() {
    let with = |wanted: &str, child: fn(&Image) -> Process| {
        refused(wanted, |image| image.processes.push(child(image)));
    };
    with("the parent of 4811 is not before it: 3", |image| Process { ppid: 3, ..child(image, None) });
    with("no thread has the id of the process, 4712", |image| Process { pid: 4712, ..child(image, None) });
    with("has the memory of 4", |image| child(image, Some(4)));
    with("has no memory, or that of another", |image| Process { memory: None, ..child(image, None) });
    with("has the dispositions of 4811", |image| Process { actions_of: Some(4811), ..child(image, None) });
    with("has descriptors of its own and not", |image| Process {
        descriptors_of: Some(4711),
        ..child(image, None)
    });
    with("4811 has ended, but has something", zombie);
    refused("there is none", |image| image.processes.clear());
    refused("root_pid 1 is not the pid of the first process", |image| image.manifest.root_pid = 1);
}

/// What may be: memory in common, page for page or as one, and a child that ended.
#[test]
fn trees_that_make_sense() {
    let mut image = sample::image();
    image.processes.push(child(&image, None));
    image.check().expect("the same pages");
    image.processes[1] = child(&image, Some(4711));
    image.check().expect("the same memory");
    let nothing = Process { descriptors: Vec::new(), locks: Vec::new(), memory_of: None, ..zombie(&image) };
    image.processes[1] = nothing;
    image.check().expect("a child that ended");
    image.processes[0].exit_status = Some(0);
    image.check().expect_err("a root that ended");
}

#[test]
fn description() {
    let description = Description::of(&sample::image());
    let process = &description.processes[0];
    let kinds: Vec<_> = process
        .memory
        .iter()
        .map(|memory| (memory.kind, memory.mappings, memory.mapped_bytes / 4096, memory.stored_bytes / 4096))
        .collect();
    let expected = [
        (MemoryKind::Anonymous, 1, 4, 1),
        (MemoryKind::Heap, 1, 2, 2),
        (MemoryKind::Stack, 1, 4, 1),
        (MemoryKind::PrivateFile, 2, 2, 1),
        (MemoryKind::Shared, 1, 2, 0),
        (MemoryKind::Kernel, 2, 6, 0),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(description.mapped_bytes(), 20 * 4096);
    assert_eq!(description.shared_bytes, 4096);
    let files: Vec<_> = process
        .files
        .iter()
        .map(|file| format!("{} {} {} {} {:?}", file.fd, file.access, file.kind, file.name, file.position))
        .collect();
    assert_eq!(files[0], "0 rw outside /dev/pts/3 None");
    assert_eq!(files[2], "2 rw file /home/user/data Some(100)");
    assert_eq!(files[5], "5 w pipe pipe 1 None");
    assert_eq!(process.command, "program --fast");
    let json = serde_json::to_value(&description).unwrap();
    assert_eq!(json["processes"][0]["memory"][3]["kind"], "private_file");
}

#[test]
fn huge_pages_guards_and_policies() {
    let with = |wanted: &str, change: fn(&mut Vma)| refused(wanted, |image| change(&mut vmas(image)[0]));
    let guard = |address, length| Extent { address, length, stream_offset: 0 };
    with("huge pages of 2^60", |vma| vma.huge_page_shift = 60);
    with("not aligned to its huge pages", |vma| vma.huge_page_shift = 21);
    refused("its shared memory has others", |image| image.shared_memory[0].huge_page_shift = 21);
    refused("not whole huge pages", |image| {
        *image = sample::everything();
        image.file_contents[2].huge_page_shift = 21;
    });
    refused("huge pages of 2^3 bytes", |image| image.shared_memory[0].huge_page_shift = 3);
    refused("a guard region lies outside", move |image| {
        let vma = &mut vmas(image)[0];
        vma.guards = vec![guard(vma.end - 4096, 8192)];
    });
    refused("is not whole pages", move |image| {
        let vma = &mut vmas(image)[0];
        vma.guards = vec![guard(vma.start, 1)];
    });
    refused("lies in a guard region", move |image| {
        let page = pages(image)[0].address;
        let owner = vmas(image).iter_mut().find(|vma| vma.start <= page && page < vma.end).unwrap();
        owner.guards = vec![guard(page, 4096)];
    });
    with("memory policy 0x7", |vma| vma.memory_policy = 7);
    with("129 bytes of nodes", |vma| (vma.memory_policy, vma.memory_policy_nodes) = (2, vec![1; 129]));
}

#[test]
fn removed_files() {
    let refused = |wanted: &str, change: &dyn Fn(&mut Image)| {
        let mut image = sample::everything();
        image.check().unwrap();
        change(&mut image);
        let message = image.check().unwrap_err().to_string();
        assert!(message.contains(wanted), "{message:?} does not contain {wanted:?}");
    };
    let path = |image: &mut Image, path: &str| {
        image.removed_files[1].identity.as_mut().unwrap().path = path.into();
    };
    refused("refers to removed file 1", &|image| drop(image.removed_files.remove(1)));
    refused("removed file 2 is of another kind", &|image| image.processes[0].cwd_removed = Some(2));
    refused("which is no folder before it", &|image| image.removed_files[1].parent = Some(1));
    refused("which is no folder before it", &|image| image.removed_files[0].parent = Some(2));
    refused("id 1 comes after 1", &|image| image.removed_files[0].id = 1);
    refused("no folder and no fifo", &|image| {
        image.removed_files[0].identity.as_mut().unwrap().mode = 0o100_600;
    });
    refused("its name \"..\" is impossible", &|image| path(image, "/home/.."));
    refused("its name \"\" is impossible", &|image| path(image, "/home/"));
    refused("no absolute path", &|image| path(image, "home"));
}

#[test]
fn unix_sockets() {
    let refused = |wanted: &str, change: &dyn Fn(&mut Image)| {
        let mut image = sample::everything();
        image.check().unwrap();
        change(&mut image);
        let message = image.check().unwrap_err().to_string();
        assert!(message.contains(wanted), "{message:?} does not contain {wanted:?}");
    };
    refused("type 3 is impossible", &|image| image.unix_sockets[0].r#type = 3);
    refused("it cannot be connected to socket 7", &|image| image.unix_sockets[0].peer = Some(7));
    refused("it cannot be connected to socket 0", &|image| image.unix_sockets[0].peer = Some(0));
    refused("its name 9 is not there", &|image| image.unix_sockets[4].name = Some(9));
    refused("it cannot listen", &|image| image.unix_sockets[6].backlog = Some(1));
    refused("although it does not listen", &|image| image.unix_sockets[4].backlog = None);
    refused("waits to be accepted twice", &|image| image.unix_sockets[4].pending = vec![5, 5]);
    refused("socket 6 cannot wait", &|image| image.unix_sockets[4].pending = vec![6]);
    refused("data in a socket that is not connected", &|image| {
        image.unix_sockets[5].queue = image.unix_sockets[0].queue.clone();
        image.unix_sockets[4].pending.clear();
    });
    refused("file 999, which is not there", &|image| image.unix_sockets[0].queue[0].files = vec![999]);
    refused("which cannot have sent it", &|image| image.unix_sockets[6].queue[0].sender = Some(0));
    refused("the wrong kind of sender", &|image| image.unix_sockets[0].queue[0].sender = Some(7));
    refused("part of a stream without data", &|image| image.unix_sockets[0].queue[0].data.clear());
    refused("option 26 is impossible", &|image| image.unix_sockets[1].options[0].option = 26);
    refused("option 16 of 0 bytes", &|image| image.unix_sockets[1].options[0].value.clear());
    refused("a filter of 7 bytes", &|image| image.unix_sockets[6].filter.truncate(7));
    refused("somebody else's socket of name 9", &|image| image.unix_sockets[8].outside = Some(9));
    refused("its name 2 is somebody else's", &|image| image.unix_sockets[8].outside = Some(2));
    refused("somebody else's socket of name 3", &|image| image.unix_sockets[8].r#type = 5);
    refused("somebody else's socket of name 3", &|image| image.unix_sockets[8].peer = Some(6));
    refused("its name 3 is somebody else's", &|image| image.unix_sockets[7].name = Some(3));
    refused("shutdown 0x4", &|image| image.unix_sockets[1].shutdown = 4);
    refused("which is still open", &|image| image.unix_sockets[1].reset = true);
    refused("an address of 0 bytes", &|image| image.unix_names[0].text.clear());
    refused("with a zero byte", &|image| image.unix_names[0].text = b"a\0b".to_vec());
    refused("abstract name that is a file", &|image| {
        image.unix_names[1].file = image.unix_names[0].file.clone()
    });
    refused("folder \"x\" is no absolute path", &|image| image.unix_names[0].folder = b"x".to_vec());
    refused("is open twice", &|image| {
        let socket = image
            .open_files
            .iter()
            .rfind(|file| matches!(file.kind, Some(Kind::Socket(_))))
            .unwrap()
            .kind
            .clone();
        image.open_files[0].kind = socket;
    });
}

#[test]
fn shared_working_folders_are_those_of_other_threads() {
    let share = |with| {
        move |image: &mut Image| {
            let own = |shared_with| {
                Some(FileSystemContext {
                    cwd: b"/".into(),
                    root: b"/".into(),
                    shared_with,
                    ..Default::default()
                })
            };
            let (pid, first) = (image.processes[0].pid, image.processes[0].threads[0].clone());
            let thread = |tid, own_fs| Thread { tid, own_fs, ..first.clone() };
            let threads =
                [thread(pid, None), thread(pid + 1, own(None)), thread(pid + 2, own(Some(pid + with)))];
            image.processes[0].threads = threads.into();
        }
    };
    let mut image = sample::image();
    share(1)(&mut image);
    image.check().unwrap();
    for with in [0, 2, 3] {
        refused("shares a working folder that thread", share(with));
    }
}

#[test]
fn system_v_objects() {
    let refused = |wanted: &str, change: &dyn Fn(&mut Image)| {
        let mut image = sample::everything();
        image.check().unwrap();
        change(&mut image);
        let message = image.check().unwrap_err().to_string();
        assert!(message.contains(wanted), "{message:?} does not contain {wanted:?}");
    };
    refused("no id", &|image| image.semaphore_sets[0].object = None);
    refused("id -1", &|image| image.message_queues[0].object.as_mut().unwrap().id = -1);
    refused("permissions 1600", &|image| image.message_queues[0].object.as_mut().unwrap().mode = 0o1600);
    refused("0 semaphores", &|image| image.semaphore_sets[0].values.clear());
    refused("value 32768", &|image| image.semaphore_sets[0].values[0] = 32_768);
    refused("2 process ids", &|image| image.semaphore_sets[0].pids.truncate(2));
    refused("process 9", &|image| image.semaphore_sets[0].pids[0] = 9);
    refused("set 7", &|image| image.processes[0].semaphore_undo[0].set = 7);
    refused("semaphore 3 of 3", &|image| image.processes[0].semaphore_undo[0].semaphores[1] = 3);
    refused("an adjustment", &|image| image.processes[0].semaphore_undo[0].adjustments[1] = -32_769);
    refused("1 adjustments", &|image| image.processes[0].semaphore_undo[0].adjustments.truncate(1));
    refused("impossible type", &|image| image.message_queues[0].messages[0].r#type = 0);
    refused("is there twice", &|image| {
        image.semaphore_sets.push(image.semaphore_sets[0].clone());
        image.semaphore_sets[1].object.as_mut().unwrap().id = 1;
    });
    let segment =
        |image: &mut Image| image.shared_memory.iter_mut().find(|one| one.id == 7).cloned().unwrap();
    refused("id 3 comes after 3", &|image| {
        let copy = segment(image);
        image.shared_memory.push(rewake_image::records::SharedMemory { id: 9, pages: Vec::new(), ..copy });
    });
    refused("a segment of 0 bytes", &|image| {
        image.shared_memory.iter_mut().filter_map(|one| one.segment.as_mut()).for_each(|one| one.size = 0);
    });
    refused("to no segment", &|image| {
        image.shared_memory.iter_mut().for_each(|one| one.segment = None);
    });
}

#[test]
fn news_of_message_queues() {
    use rewake_image::records::open_file;
    let refused = |wanted: &str, change: &dyn Fn(&mut Image)| {
        let mut image = sample::everything();
        change(&mut image);
        let message = image.check().unwrap_err().to_string();
        assert!(message.contains(wanted), "{message:?} does not contain {wanted:?}");
    };
    fn news(image: &mut Image) -> &mut rewake_image::records::PosixNotification {
        image.posix_queues[0].notification.as_mut().unwrap()
    }
    refused("process 9 has no descriptors of its own", &|image| news(image).pid = 9);
    refused("does not lead to the queue", &|image| news(image).fd = news(image).socket);
    refused("signal 65", &|image| news(image).signal = 65);
    refused("in way 4", &|image| news(image).notify = 4);
    refused("what only a socket is told", &|image| news(image).notify = 0);
    refused("is no such socket", &|image| news(image).socket = news(image).fd);
    refused("not told 31 bytes", &|image| news(image).cookie.truncate(31));
    refused("a netlink socket of type 1", &|image| {
        let sockets = image.open_files.iter_mut().filter_map(|file| file.kind.as_mut());
        for kind in sockets {
            if let open_file::Kind::Netlink(socket) = kind {
                socket.r#type = 1;
            }
        }
    });
}
