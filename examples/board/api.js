// Keeps messages in PostgreSQL, by way of psql, so that nothing has to be installed for it.
const http = require('node:http');
const { spawn } = require('node:child_process');

/** Runs a statement; `:'body'` in it stands for the text, quoted as SQL wants it. */
function sql(statement, body = '') {
  return new Promise((resolve, reject) => {
    const options = ['--no-align', '--tuples-only', '--quiet', '--set', 'ON_ERROR_STOP=1', '--set', `body=${body}`];
    const psql = spawn('psql', [...options, process.env.DATABASE_URL], { stdio: ['pipe', 'pipe', 'inherit'] });
    let answer = '';
    psql.stdout.on('data', (chunk) => (answer += chunk));
    psql.on('error', reject);
    psql.on('close', (code) => (code === 0 ? resolve(answer) : reject(new Error(`psql exited ${code}`))));
    psql.stdin.end(statement);
  });
}

function text(request) {
  return new Promise((resolve) => {
    let all = '';
    request.on('data', (chunk) => (all += chunk));
    request.on('end', () => resolve(all));
  });
}

const routes = {
  'GET /healthz': async () => [200, (await sql('select 1')) && '"fine"'],
  'GET /messages': async () => [200, await sql("select coalesce(json_agg(m order by id), '[]') from messages m")],
  'POST /messages': async (request) => {
    const made = "insert into messages (body) values (:'body') returning json_build_object('id', id)";
    return [201, await sql(made, await text(request))];
  },
};

const server = http.createServer(async (request, response) => {
  const route = routes[`${request.method} ${request.url}`];
  const [status, body] = route
    ? await route(request).catch((error) => [503, JSON.stringify(error.message)])
    : [404, '"no such thing"'];
  response.writeHead(status, { 'content-type': 'application/json' }).end(body);
});

server.listen(process.env.PORT, '127.0.0.1', () => console.log(`listening on ${process.env.PORT}`));
process.on('SIGTERM', () => server.close(() => process.exit(0)));
