/**
 * What no HTTP client would send, over plain sockets: floods of headers, garbage behind good requests, senders that never
 * finish. Each is refused or cut within bounds, and the server goes on serving everybody else.
 */
import net from "node:net";

/** Bounds for a failing server; a good one needs milliseconds. */
const answerMsMax = 10_000;
const slowSenders = 200;

export interface Raw {
  /** Status lines in the order they came. */
  readonly statuses: readonly number[];
  readonly text: string;
  /** The server closed the connection. */
  readonly closed: boolean;
}

/** Sends the bytes as they are and reads until the server closes, `enough` says so, or time is up. */
export function raw(
  url: string,
  bytes: string | readonly string[],
  enough: (text: string) => boolean = () => false,
  waitMs = answerMsMax,
): Promise<Raw> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve) => {
    let text = "";
    const socket = net.connect(Number(port), hostname);
    const end = (closed: boolean): void => {
      clearTimeout(timer);
      socket.destroy();
      const statuses = [...text.matchAll(/HTTP\/1\.1 (\d{3})/g)].map((match) => Number(match[1]));
      resolve({ statuses, text, closed });
    };
    const timer = setTimeout(() => end(false), waitMs);
    socket.setEncoding("latin1");
    socket.on("data", (chunk: string) => {
      text += chunk;
      if (enough(text)) end(false);
    });
    // A reset while we still write is an answer, too.
    socket.on("error", () => end(true));
    socket.on("close", () => end(true));
    socket.on("connect", () => {
      for (const piece of typeof bytes === "string" ? [bytes] : bytes)
        socket.write(piece, "latin1");
    });
  });
}

const isAnswered = (text: string): boolean => /HTTP\/1\.1 [2-5]\d\d[\s\S]*\r\n\r\n/.test(text);

interface Attack {
  readonly name: string;
  readonly bytes: (token: string) => string | readonly string[];
  /** Null: as it should be. */
  readonly judge: (answer: Raw) => string | null;
}

const head = "Host: x\r\n";
const config = "/v1/tenants/shop/namespaces/app/configs/attacked";

function refused({ statuses, closed }: Raw): string | null {
  const [first] = statuses;
  if (first === undefined) return closed ? null : "neither answered nor cut";
  return first >= 400 && first < 500 ? null : `answered ${first}`;
}

/** Refused, or taken for what it can be read as; never a fault. */
function harmless({ statuses, closed }: Raw): string | null {
  if (statuses.length === 0) return closed ? null : "neither answered nor cut";
  // 505 is Bun's own word for a request line that it cannot read.
  return statuses.every((status) => status < 500 || status === 505)
    ? null
    : `answered ${statuses.join()}`;
}

const attacks: readonly Attack[] = [
  {
    name: "a header of 200 KB",
    bytes: () => `GET /livez HTTP/1.1\r\n${head}X-A: ${"a".repeat(200_000)}\r\n\r\n`,
    judge: refused,
  },
  {
    name: "20,000 headers",
    bytes: () =>
      `GET /livez HTTP/1.1\r\n${head}${Array.from({ length: 20_000 }, (_, i) => `X-${i}: a\r\n`).join("")}\r\n`,
    judge: refused,
  },
  {
    name: "a target of 1 MB",
    bytes: () => `GET /${"a".repeat(1_000_000)} HTTP/1.1\r\n${head}\r\n`,
    judge: refused,
  },
  {
    name: "garbage",
    bytes: () => "\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n\r\n\r\n",
    judge: refused,
  },
  {
    name: "garbage behind a good request",
    bytes: () => `GET /livez HTTP/1.1\r\n${head}\r\n\0\x01\x02 garbage\r\n\r\n`,
    judge: harmless,
  },
  {
    name: "two lengths",
    bytes: (token) =>
      `PUT ${config} HTTP/1.1\r\n${head}Authorization: Bearer ${token}\r\nContent-Type: application/json\r\nContent-Length: 2\r\nContent-Length: 30\r\n\r\n{}`,
    judge: refused,
  },
  {
    name: "a length beside chunks",
    bytes: (token) =>
      `PUT ${config} HTTP/1.1\r\n${head}Authorization: Bearer ${token}\r\nContent-Type: application/json\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /livez HTTP/1.1\r\n${head}\r\n`,
    judge: harmless,
  },
  {
    name: "a length that is none",
    bytes: () => `POST /v1/tenants HTTP/1.1\r\n${head}Content-Length: -1\r\n\r\n`,
    judge: refused,
  },
  {
    name: "chunks of a wrong size",
    bytes: (token) =>
      `PUT ${config} HTTP/1.1\r\n${head}Authorization: Bearer ${token}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n`,
    judge: refused,
  },
  {
    name: "10 MB for a route that takes 64 KB",
    bytes: (token) => [
      `POST /v1/tenants/shop/keys HTTP/1.1\r\n${head}Authorization: Bearer ${token}\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n\r\n`,
      ...Array.from({ length: 10 }, () => " ".repeat(1_000_000)),
    ],
    judge: refused,
  },
  {
    name: "a line folded into another header",
    bytes: () => `GET /livez HTTP/1.1\r\n${head}X-A: a\r\n b: c\r\n\r\n`,
    judge: harmless,
  },
  { name: "NUL in a target", bytes: () => `GET /livez\0 HTTP/1.1\r\n${head}\r\n`, judge: harmless },
  ...["TRACE", "CONNECT", "get", "BREW"].map((method) => ({
    name: `the method ${method}`,
    bytes: () => `${method} /livez HTTP/1.1\r\n${head}\r\n`,
    judge: refused,
  })),
  {
    name: "a Host that would be another path",
    bytes: () => "GET /nowhere HTTP/1.1\r\nHost: x/livez?\r\n\r\n",
    judge: refused,
  },
  {
    name: "another version of the protocol",
    bytes: () => `GET /livez HTTP/9.9\r\n${head}\r\n`,
    judge: harmless,
  },
];

/**
 * @param token of a key that may change configs of tenant `shop`
 * @returns what went wrong, one line each
 */
export async function attack(url: string, token: string): Promise<readonly string[]> {
  const wrong: string[] = [];
  const alive = async (after: string): Promise<void> => {
    const { statuses } = await raw(url, `GET /livez HTTP/1.1\r\n${head}\r\n`, isAnswered);
    if (statuses[0] !== 200) wrong.push(`/livez after ${after}: ${statuses[0] ?? "no answer"}`);
  };
  for (const { name, bytes, judge } of attacks) {
    const answer = await raw(url, bytes(token), isAnswered);
    const complaint = judge(answer);
    if (complaint !== null) wrong.push(`${name}: ${complaint}`);
    await alive(name);
  }
  const { hostname, port } = new URL(url);
  const unfinished = [
    `GET /livez HTTP/1.1\r\n${head}X-A: `,
    `PUT ${config} HTTP/1.1\r\n${head}Authorization: Bearer ${token}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{`,
  ];
  const senders = Array.from({ length: slowSenders }, (_, i) => {
    const socket = net.connect(Number(port), hostname);
    socket.on("error", () => {});
    socket.write(unfinished[i % 2] as string);
    return socket;
  });
  await Promise.all(
    senders.map((socket) => new Promise((resolve) => socket.once("connect", resolve))),
  );
  await alive(`${slowSenders} senders that do not finish`);
  for (const socket of senders) socket.destroy();
  await alive("they have gone");
  return wrong;
}
