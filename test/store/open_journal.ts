/** Journals on a real disk. */
import { openJournalDisk } from "../../src/store/disk.ts";
import {
  NodeJournal,
  type JournalOptions,
  type NodeJournalRecovery,
} from "../../src/store/journal.ts";

/** One that has read what is in the directory. */
export function openJournalIn(
  directory: string,
  options: Omit<JournalOptions, "disk">,
): Promise<{ readonly journal: NodeJournal; readonly recovery: NodeJournalRecovery }> {
  const journal = new NodeJournal({ ...options, disk: openJournalDisk(directory) });
  return new Promise((resolve, reject) => {
    journal.open((error, recovery) => {
      if (recovery === null) reject(error ?? new Error("The journal said nothing"));
      else resolve({ journal, recovery });
    });
  });
}
