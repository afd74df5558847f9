/**
 * Bun writes what is pushed into its direct streams straight to the socket, without a read, a promise and a turn of the
 * microtasks for every piece: 1.4 µs instead of 2.7 µs of its own for each client that is told of a change (Bun 1.4.5).
 */
import type { OpenStream, Pushing, Sink } from "../gateway/streams.ts";
import { bun } from "./runtime.ts";

/** What is used of Bun's ReadableStreamDirectController. */
interface DirectController {
  /** A promise when the client does not keep up; it settles when the client has read, or went away. */
  write(bytes: Uint8Array): number | Promise<number>;
  /** Sends what was written, which else waits for the end of the turn, or longer. */
  flush(): unknown;
  end(): unknown;
}

class DirectSink implements Sink {
  /** The head of the answer is not sent yet, and what is written goes with it. */
  isOpening = true;
  readonly #controller: DirectController;
  readonly #source: Pushing;

  constructor(controller: DirectController, source: Pushing) {
    this.#controller = controller;
    this.#source = source;
  }

  write(bytes: Uint8Array): boolean {
    const written = this.#controller.write(bytes);
    if (typeof written === "number") {
      // One that is told of a change has it before the next one is told: left to the end of the turn, the first of a
      // thousand would wait for the others.
      if (!this.isOpening) this.#controller.flush();
      return true;
    }
    const settled = (): void => this.#source.drained();
    written.then(settled, settled);
    return false;
  }

  end(): void {
    this.#controller.end();
  }
}

function directStream(source: Pushing): ReturnType<OpenStream> {
  let isOpen = false;
  const direct = {
    type: "direct",
    /** Once for a whole answer; again when the stream is read piece by piece instead. */
    pull: (controller: DirectController): void => {
      if (isOpen) return;
      isOpen = true;
      const sink = new DirectSink(controller, source);
      source.open(sink);
      sink.isOpening = false;
    },
    cancel: (): void => source.gone(),
  };
  return new ReadableStream(direct as unknown as UnderlyingDefaultSource<Uint8Array<ArrayBuffer>>);
}

/** The fastest way of this runtime; undefined: that of the web. */
export const openStream: OpenStream | undefined = bun === undefined ? undefined : directStream;
